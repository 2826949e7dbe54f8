"""Review of a labelling job: doubtful labels, people's decisions, and labelling again with their corrections."""
