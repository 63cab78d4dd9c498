"""TensorRT engines from the portable step graphs."""
