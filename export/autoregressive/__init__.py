"""From an autoregressive flow to the step graphs of its flow blocks."""
