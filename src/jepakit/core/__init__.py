"""What all else stands on: errors, files, progress, random numbers, settings, signals, devices. Nothing of ours lies below."""
