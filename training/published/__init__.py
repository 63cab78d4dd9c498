"""Reading published configurations and weights."""
