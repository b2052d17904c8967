"""What a run leaves, and the ways in and out: run folder, checkpoints, loading, released and transformers' formats."""
