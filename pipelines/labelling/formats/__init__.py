"""What other tools read: one file a format, each written photo by photo."""
