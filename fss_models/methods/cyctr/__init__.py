"""CyCTR: few-shot segmentation via cycle-consistent transformer (NeurIPS 2021)."""
