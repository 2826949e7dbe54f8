"""Few-shot segmentation methods in plain PyTorch: one contract, one registry, no Ray."""
