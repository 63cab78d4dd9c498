"""Weights of 8 and 4 bits: recorded inputs, rounding, and the choice for each matrix."""
