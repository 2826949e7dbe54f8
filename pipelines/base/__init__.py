"""Foundations of all rooms: storage, cluster, tracking, progress, workspace, cache."""
