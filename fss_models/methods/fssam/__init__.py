"""FSSAM (ICML 2025): SAM 2's memory as a matcher, with a pseudo memory of the query itself."""
