"""Image backbones that are not part of the `sam2` package."""
