"""INSID3 (CVPR 2026): one frozen DINOv3 and no training; clusters of the query that resemble the support are kept."""
