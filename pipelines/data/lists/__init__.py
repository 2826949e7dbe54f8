"""Readers of the list files that papers publish. They never execute code from a file."""
