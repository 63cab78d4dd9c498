"""Errors, files, images and words that every stage shares; neither torch nor ONNX Runtime."""
