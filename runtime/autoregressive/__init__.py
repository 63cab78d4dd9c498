"""Autoregressive flows: token order, the sampling loop, and its inverse."""
