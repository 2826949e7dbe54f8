"""SANSA (NeurIPS 2025, arXiv 2505.21795): adapters that make frozen SAM 2 follow meaning instead of looks."""
