"""The labeler and the service around it; its web page is in `console`."""
