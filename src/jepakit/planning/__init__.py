"""What a run will take, and whether the images fit, before any of it is spent."""
