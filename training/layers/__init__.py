"""Transformer layers that both families are built of."""
