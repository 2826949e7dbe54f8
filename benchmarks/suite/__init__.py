"""The benchmarks, one module each: `CONFIG` (every setting with its default) and `run(config) -> dict`."""
