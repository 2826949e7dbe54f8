"""The training-free baseline: cosine to the support's mean foreground and background features."""
