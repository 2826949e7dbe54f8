"""Labelling jobs: every photo below a URL is labelled once."""
