"""The baseline without training: SAM 2 as released, tracking the support into the query."""
