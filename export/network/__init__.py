"""Executing a parsed TensorRT network in NumPy, layer by layer: what TensorRT understood, checked without a GPU."""
