"""What the product runs on: for now one machine."""
