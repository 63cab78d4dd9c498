"""TensorRT engines in CUDA graphs."""
