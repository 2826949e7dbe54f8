"""What a person types: the `fss` command and its recipes."""
