"""Ordinary differential equations dx/dt = v(x, t), in NumPy: solvers as data, time grids, adaptive steps."""
