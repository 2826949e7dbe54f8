"""Real services on one machine without containers: Ray nodes, an S3 server, an MLflow server."""
