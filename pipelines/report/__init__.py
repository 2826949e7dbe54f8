"""Self-contained HTML pages about a workspace: the report, episodes as pictures, the sampling of a stream."""
