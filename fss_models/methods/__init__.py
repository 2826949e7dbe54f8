"""The methods, one folder each (config.py, model.py, official.py); the registry finds them by listing this folder."""
