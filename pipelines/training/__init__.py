"""One training run: its context, loop, worker and checkpoints."""
