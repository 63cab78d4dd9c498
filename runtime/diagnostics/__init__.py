"""Measurements and reports on a bundle and on the machine that runs it."""
