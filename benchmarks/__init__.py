"""Benchmarks: each measures a ratio in one run and writes a dated result file."""
