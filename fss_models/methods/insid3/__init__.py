"""INSID3 (CVPR 2026): one frozen DINOv3, no training; clusters of the query are kept by their likeness to the support."""
