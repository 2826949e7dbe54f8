"""What every room stands on: storage, cluster, tracking, progress, workspace, cache."""
