"""Continuous flows: a velocity field trained by conditional flow matching, and its likelihood."""
