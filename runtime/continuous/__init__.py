"""Continuous flows: the integration from noise to data."""
