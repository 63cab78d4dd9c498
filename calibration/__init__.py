"""Decode plans and quantised weights for a bundle, and the reports that justify them."""
