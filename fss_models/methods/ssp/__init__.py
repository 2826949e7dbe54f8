"""SSP: self-support few-shot semantic segmentation (ECCV 2022)."""
