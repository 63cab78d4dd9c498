"""Transformer layers of both families."""
