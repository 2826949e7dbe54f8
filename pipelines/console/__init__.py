"""Labelling jobs that people start, watch and review in the service's web page."""
