"""Photos in, labels out, in one process: marks, support sets, the labeler, masks, presence."""
