"""The weights of a step graph on disk: its matrix products, the norms before them, and what its initializers hold."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

# Parameters of a norm that are multiplied by a factor when its output is: positions among the node's inputs.
NORM_PARAMETERS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}


@dataclass(frozen=True)
class Linear:
    """A product x Wᵀ (+ b) of a step graph."""

    weight: str  # name of W, [out, in]; it may be stored in half precision and cast on the way
    value: str  # name of x
    # Sizes of W.
    outputs: int
    inputs: int


@dataclass(frozen=True)
class Norm:
    """A norm whose output goes into matrix products and nowhere else."""

    parameters: tuple[str, ...]  # names of its scale and, if it has one, its bias
    weights: tuple[str, ...]  # names of the matrices that take its output


class StepGraphWeights:
    """A step graph's structure; its weights, in or below its file's folder, are read one by one when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = onnx.load(path, load_external_data=False)
        self.initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self._casts = {node.output[0]: node.input[0] for node in self.model.graph.node if node.op_type == "Cast"}
        self.linears = {
            name: Linear(name, node.input[0], *self.initializers[name].dims)
            for node in self.model.graph.node
            if (name := self.weight(node))
        }
        self.norms = tuple(self._norms())

    def array(self, name: str) -> NDArray:
        """An initializer's value."""
        return numpy_helper.to_array(self.initializers[name], str(self.path.parent))

    def weight(self, node: onnx.NodeProto) -> str | None:
        """Name of the matrix that a node multiplies by, if it is a product with a stored one."""
        name = node.input[1] if is_linear(node) else ""
        name = self._casts.get(name, name)
        return name if name in self.initializers else None

    def _norms(self) -> list[Norm]:
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        results = {value.name for value in self.model.graph.output}
        found = []
        for node in self.model.graph.node:
            if node.op_type not in NORM_PARAMETERS:
                continue
            parameters = [node.input[i] for i in NORM_PARAMETERS[node.op_type] if i < len(node.input) and node.input[i]]
            value = node.output[0]
            users = readers.get(value, [])
            # To the type products are computed in, or, in a traced graph, to their shape.
            while [user.op_type for user in users] in (["Cast"], ["Reshape"]):
                value = users[0].output[0]
                users = readers.get(value, [])
            own = all(name in self.initializers and len(readers[name]) == 1 for name in parameters)
            products = all(is_linear(user) and user.input[0] == value for user in users)
            if users and own and products and value not in results:
                found.append(Norm(tuple(parameters), tuple(user.input[1] for user in users)))
        return found


def is_linear(node: onnx.NodeProto) -> bool:
    """Whether a node is x Wᵀ (+ b) with nothing else to it."""
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
    return (
        node.op_type in ("Gemm", "FusedMatMul")
        and attributes.get("transB") == 1
        and not attributes.get("transA")
        and plain
    )


def float_bytes(graph: StepGraphWeights, name: str) -> int:
    """Bytes of an initializer as it is stored."""
    tensor = graph.initializers[name]
    return int(np.prod(tensor.dims)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
