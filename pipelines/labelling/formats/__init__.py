"""Formats that other tools read. Each is written photo by photo."""
