"""A person looks at a labelling job: what is doubtful, what they say of it, labelling again with what they gave."""
