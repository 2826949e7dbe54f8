"""One folder a method: config.py, model.py, weights.py. Registered by decoration, found by listing this folder."""
