"""One tree of settings, presets, what is chosen where nothing is said, optimiser and schedules."""
