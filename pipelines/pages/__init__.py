"""What the HTML pages share: frame and style, pictures, curves."""
