"""From labelled images to shards, training streams and episode lists."""
