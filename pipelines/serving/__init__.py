"""The HTTP service around the labeler: Ray Serve deployments, API and client. The web page is in `console`."""
