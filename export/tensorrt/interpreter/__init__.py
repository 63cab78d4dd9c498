"""The network that TensorRT parsed, executed layer by layer in NumPy."""
