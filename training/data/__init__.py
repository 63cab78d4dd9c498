"""Training data: images from folders and arrays, with labels or captions; and points."""

from starflow.training.data.dataset import load_dataset

__all__ = ["load_dataset"]
