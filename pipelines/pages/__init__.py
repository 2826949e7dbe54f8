"""What pages share: frame and style, pictures, curves."""
