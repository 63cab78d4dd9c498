"""Checkpoints to bundles: step graphs, ONNX, the weight file."""
