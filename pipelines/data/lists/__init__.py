"""Readers of the list files that papers publish. None of them executes anything."""
