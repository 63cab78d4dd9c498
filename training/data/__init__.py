"""Training data: images from folders and arrays, their labels and captions."""

from starflow.training.data.dataset import load_dataset

__all__ = ["load_dataset"]
