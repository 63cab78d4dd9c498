"""A float32 graph computed in float16 where magnitudes allow: which nodes do so, and the casts between them and the others.

TensorRT's networks are strongly typed: a graph's types say what is computed in. The networks beside the flow are written in
float32, and an engine whose products are float16 reads half the bytes.
"""

from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy

import onnx
from onnx import NodeProto, TensorProto, helper

FLOAT16_MAX = 65504.0
MARGIN = 2.0  # a measurement sees some inputs, not all

PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
# What goes on in float16 from the result of a product: moves, and functions of each element by itself. Sums over many elements
# and what belongs to them (norms, softmax) stay float32, as in step graphs.
FOLLOWERS = frozenset(
    {
        *("Reshape", "Transpose", "Slice", "Split", "Concat", "Expand", "Squeeze", "Unsqueeze", "Resize", "Gather"),
        *("Add", "Sub", "Mul", "Neg", "Where", "Relu", "LeakyRelu", "Gelu", "Sigmoid", "Tanh"),
    }
)
# The inputs that are values: others are sizes, indices, conditions, scales of a resize.
VALUES = {
    "Concat": slice(None),
    "Add": slice(2),
    "Sub": slice(2),
    "Mul": slice(2),
    "Where": slice(1, 3),
} | dict.fromkeys(PRODUCTS, slice(None))
LOOKUP = "Gather"  # in a table of weights it needs no result of a product to begin with


def halved(model: onnx.ModelProto, peaks: Mapping[str, float]) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A graph with the inputs and outputs of `model` that computes in float16 where magnitudes allow.

    Args:
        model: A float32 graph; it is not changed. Its weights may lie outside of it.
        peaks: Largest magnitude of each floating-point value, by name, weights and inputs included. A node that reads or makes
            one beyond half of float16's range stays float32, as does one with a value that is not in here.

    Returns:
        The graph, and the names of the products that stay float32.
    """
    nodes = list(model.graph.node)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
    constant = _constants(model)
    half: set[int] = set()
    made: set[str] = set()  # what half nodes make
    for index, node in enumerate(nodes):
        read = [name for name in _values(node) if name]
        follows = node.op_type in FOLLOWERS and made.issuperset(set(read) - constant)
        follows &= node.op_type == LOOKUP or not made.isdisjoint(read)
        fits = all(peaks.get(name, float("inf")) * MARGIN <= FLOAT16_MAX for name in (*read, *node.output))
        if (node.op_type in PRODUCTS or follows) and fits and floats.issuperset((*read, *node.output)):
            half.add(index)
            made.update(node.output)
    wide = tuple(
        node.name or node.output[0]
        for index, node in enumerate(nodes)
        if node.op_type in PRODUCTS and index not in half
    )
    return _with_casts(model, half, made), wide


def _values(node: NodeProto) -> list[str]:
    """The inputs of a node that are values of the type of its result."""
    return list(node.input[VALUES.get(node.op_type, slice(1))])


def _constants(model: onnx.ModelProto) -> set[str]:
    """Values that depend on no input: weights, and weights that are widened."""
    found = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" or (node.input and found.issuperset(filter(None, node.input))):
            found.update(node.output)
    return found


def _with_casts(model: onnx.ModelProto, half: Collection[int], made: Collection[str]) -> onnx.ModelProto:
    """The graph with some nodes in float16, and a cast wherever a value passes between them and the others."""
    result = deepcopy(model)
    outputs = {value.name for value in result.graph.output}
    nodes = list(result.graph.node)
    stored = {tensor.name for tensor in result.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    # A weight that is stored in float16 and widened is read as it is stored.
    half_names = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Cast" and node.input[0] in stored}
    half_names |= {name: f"{name}/half" for name in made}
    read_wide = outputs | {
        name
        for index, node in enumerate(nodes)
        for place, name in enumerate(node.input)
        if index not in half or name not in _values(node)
    }

    def rewritten() -> Iterator[NodeProto]:
        for index, node in enumerate(nodes):
            if index not in half:
                yield node
                continue
            read = set(filter(None, _values(node)))
            for name in sorted(read - half_names.keys()):
                half_names[name] = f"{name}/half"
                yield _cast(name, half_names[name], TensorProto.FLOAT16)
            node.input[:] = [half_names[name] if name in read else name for name in node.input]
            wide = [name for name in node.output if name in read_wide]
            node.output[:] = [half_names[name] for name in node.output]
            yield node
            for name in wide:
                yield _cast(half_names[name], name, TensorProto.FLOAT)

    finished = list(rewritten())
    read = outputs | {name for node in finished for name in node.input}
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(node for node in finished if not read.isdisjoint(node.output))
    return result


def _cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=to)
