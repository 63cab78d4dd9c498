"""Weights that several graphs refer to."""

from dataclasses import dataclass

from starflow.export.onnx_graph.network_weights import Tensors
from starflow.export.onnx_graph.weight_file import WeightFile


@dataclass(frozen=True)
class SharedWeights:
    """Weights by reference.

    Attributes:
        tensors: A model's parameters and buffers by name.
        file: Open file they are stored in, float32 or smaller; graphs widen what is smaller.
        location: Its path relative to the graph's folder.
    """

    tensors: Tensors
    file: WeightFile
    location: str
