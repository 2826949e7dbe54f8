"""The papers' analyses of a trained bundle: its features, its attention and its limits. Each writes a page."""
