"""A run from start to end: its processes, folder, lock, checkpoints, cached outputs and model cards."""
