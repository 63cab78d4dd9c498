"""Backends: what runs a step graph. Each is a module of its own behind `base.BlockRunner`."""
