"""Published results tables: run again where data and weights are there, ours beside the published."""
