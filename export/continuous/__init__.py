"""From a continuous flow to its velocity graph."""
