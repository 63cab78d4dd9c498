"""The HTTP server of `starflow serve`: OpenAI's images endpoint, the Open Inference Protocol, metrics and a page."""
