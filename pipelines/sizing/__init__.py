"""How much hardware a dataset, a sweep and a labelling job need."""
