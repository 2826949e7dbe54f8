"""VRP-SAM: SAM with a visual reference prompt (CVPR 2024)."""
