"""Acceptance on a GPU machine, in stages; see `__main__`."""
