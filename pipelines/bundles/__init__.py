"""A trained method as a folder: writing and reading it, its weights, and what ships with the package."""
