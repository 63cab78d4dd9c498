"""Execute the network TensorRT parsed from a step graph, layer by layer, in NumPy."""
