"""Real services on one machine, without containers."""
