"""Features of frozen encoders: computed once, stored, and read by every run that uses the same encoder."""
