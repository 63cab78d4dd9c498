"""Bundles in NVIDIA's Triton inference server: the model repository that `starflow triton` writes, and the model that it runs."""
