"""Writing ONNX graphs by hand, legibly: one call per node, weights by reference."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from starflow.export.onnx_graph.weight_file import StoredTensor, WeightFile, external_tensor

OPSET = 24  # TensorScatter; Attention with grouped queries
IR_VERSION = 11
MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators
ONNX_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.bool_): TensorProto.BOOL,
}

Dims = Sequence[int | str]


class GraphBuilder:
    """An ONNX graph under construction. Values are named by strings, nodes appear in the order they are asked for.

    Args:
        location: Path of the weight file relative to the graph's folder, in or below it.
    """

    def __init__(self, name: str, weights: WeightFile, location: str) -> None:
        self.name = name
        self.weights = weights
        self.location = location
        self.used_weights: dict[str, StoredTensor] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._scope: list[str] = []
        self._counts: dict[str, int] = {}
        self._uses_microsoft = False

    # Names

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of everything made inside `with`."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def _fresh(self, kind: str) -> str:
        base = "/".join([*self._scope, kind])
        count = self._counts[base] = self._counts.get(base, -1) + 1
        return base if count == 0 else f"{base}.{count}"

    # Values

    def input(self, name: str, dtype: np.dtype | type, shape: Dims) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, ONNX_TYPES[np.dtype(dtype)], list(shape)))
        return name

    def output(self, value: str, name: str, dtype: np.dtype | type, shape: Dims) -> str:
        """Declare `value` an output called `name`, by renaming the node output that makes it."""
        for node in self._nodes:
            node.input[:] = [name if used == value else used for used in node.input]
            node.output[:] = [name if made == value else made for made in node.output]
        self._outputs.append(helper.make_tensor_value_info(name, ONNX_TYPES[np.dtype(dtype)], list(shape)))
        return name

    def constant(self, value: ArrayLike, dtype: np.dtype | type) -> str:
        """A small constant, stored in the graph; equal ones are shared."""
        array = np.asarray(value, dtype)
        content = "_".join(map(str, array.reshape(-1).tolist())) if array.size <= 8 else f"{crc32(array.tobytes()):08x}"
        name = f"const.{array.dtype}.{'x'.join(map(str, array.shape))}.{content}"
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, load: Callable[[], NDArray]) -> str:
        """A weight by reference: its data lies in the weight file once, whatever graph uses it."""
        stored = self.weights.add(name, load)
        if name not in self._initializers:
            self._initializers[name] = external_tensor(stored, self.location)
            self.used_weights[name] = stored
        return name

    # Nodes

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output and return that output's name."""
        return self.ops(kind, *inputs, count=1, domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, count: int, unused: Collection[int] = (), domain: str = "", **attributes: Any
    ) -> list[str]:
        """Append a node with `count` outputs, and return the names of those that are not `unused`."""
        name = self._fresh(kind)
        outputs = [name] if count == 1 else [f"{name}:{index}" for index in range(count)]
        outputs = ["" if index in unused else output for index, output in enumerate(outputs)]
        self._uses_microsoft |= domain == MICROSOFT
        self._nodes.append(helper.make_node(kind, list(inputs), outputs, name=name, domain=domain, **attributes))
        return [output for output in outputs if output]

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """Reshape to a static shape with at most one -1; 0 keeps a dimension."""
        return self.op("Reshape", value, self.constant(list(shape), np.int64))

    def cast(self, value: str, dtype: np.dtype | type) -> str:
        return self.op("Cast", value, to=ONNX_TYPES[np.dtype(dtype)])

    def model(self, metadata: dict[str, str]) -> onnx.ModelProto:
        """The finished model, checked by `onnx.checker` only once it lies beside its weights."""
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, initializer=list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", OPSET)]
        if self._uses_microsoft:
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        model = helper.make_model(graph, opset_imports=opsets, producer_name="starflow")
        model.ir_version = IR_VERSION
        helper.set_model_props(model, metadata)
        return model
