"""The labeler, the service around it and its web page."""
