"""The papers' analyses of a trained bundle: what its features hold, and how far they carry. Each ends in a page."""
