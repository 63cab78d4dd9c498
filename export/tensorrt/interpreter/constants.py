"""Values of constant layers."""

from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from starflow.export.tensorrt.interpreter.layers import NetworkLayer
from starflow.export.tensorrt.interpreter.number_types import STORAGE, working_dtype
from starflow.export.tensorrt.parse import ParsedGraph


class Constants:
    """Reads constants of a parsed network.

    TensorRT's bindings hand out weights as NumPy arrays, except in types that NumPy does not have: those are looked up in
    the ONNX file, where the initializer has the layer's name.
    """

    def __init__(self, parsed: ParsedGraph) -> None:
        self._path = Path(parsed.path)

    def read(self, layer: NetworkLayer) -> NDArray:
        """The layer's value in the type that is computed in; it may be a view of the parser's memory."""
        attributes, dtype = layer.attributes, layer.output.dtype
        value = attributes.weights
        if not isinstance(value, np.ndarray):
            value = self._from_file(layer)
        return value.reshape(tuple(attributes.shape)).astype(working_dtype(dtype), copy=False)

    def _from_file(self, layer: NetworkLayer) -> NDArray:
        tensor = self._initializers.get(layer.name)
        if tensor is None:
            layer.refuse(f"a constant of type {layer.output.dtype} that is no initializer of the graph")
        value = onnx.numpy_helper.to_array(tensor, str(self._path.parent))
        if value.dtype != STORAGE[layer.output.dtype]:
            layer.refuse(f"a constant of type {layer.output.dtype}, which the graph says is {value.dtype}")
        return value

    @cached_property
    def _initializers(self) -> dict[str, onnx.TensorProto]:
        graph = onnx.load(self._path, load_external_data=False).graph
        return {tensor.name: tensor for tensor in graph.initializer}
