"""Estimates how much hardware and time a dataset, a sweep and a labelling job need."""
