"""GF-SAM: points from feature similarity, and a graph of the masks that a frozen SAM draws for them (NeurIPS 2024)."""
