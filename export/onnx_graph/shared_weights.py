"""Weights that several graphs refer to."""

from dataclasses import dataclass

from starflow.export.onnx_graph.network_weights import Tensors
from starflow.export.onnx_graph.weight_file import WeightFile


@dataclass(frozen=True)
class SharedWeights:
    """Weights by reference."""

    tensors: Tensors  # a model's parameters and buffers by name
    file: WeightFile  # open file they are stored in, float32 or smaller; graphs widen what is smaller
    location: str  # its path relative to the graph's folder
