"""Image features that no training changes: computed once, kept in storage, read by every run that shares them."""
