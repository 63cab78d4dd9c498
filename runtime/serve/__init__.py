"""Services over samplers: a queue that merges requests into batches, and the HTTP server of `starflow serve`."""
