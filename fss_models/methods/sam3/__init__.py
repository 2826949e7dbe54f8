"""SAM 3 without training: support and query on one canvas (arXiv 2604.05433), or prompt tokens used for many photos."""
