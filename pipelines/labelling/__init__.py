"""Bulk jobs: every photo below a URL labelled once."""
