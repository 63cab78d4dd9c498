"""Ordinary differential equations dx/dt = v(x, t), in NumPy: solvers as tables, time grids, adaptive steps."""
