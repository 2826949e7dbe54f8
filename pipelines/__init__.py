"""Ray, MLflow, filesystems and networks around the plain PyTorch methods of `fss_models`."""
