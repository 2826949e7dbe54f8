"""Label Studio: its machine-learning backend on top of a running service, and predictions for whole projects."""
