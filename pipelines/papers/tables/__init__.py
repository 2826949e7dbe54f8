"""Published results tables, run again where data and weights are available, with our figures beside the published."""
