"""One training run: its loop, optimiser, checkpoints and progress."""
