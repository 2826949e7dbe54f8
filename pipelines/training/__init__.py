"""One training run of any kind: its context, task, loop, worker and checkpoints."""
