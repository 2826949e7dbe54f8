"""One module a benchmark: `CONFIG` (every setting with its default) and `run(config) -> dict`."""
