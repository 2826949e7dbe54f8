"""Measurements, each a ratio taken in one run, with dated result files."""
