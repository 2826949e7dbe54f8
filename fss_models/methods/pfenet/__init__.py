"""PFENet: prior guided feature enrichment network for few-shot segmentation (TPAMI 2020)."""
