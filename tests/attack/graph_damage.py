"""Edits of ONNX graphs that leave them readable: other sizes, types, operators, attributes, and places of their weights."""

from collections.abc import Callable
from typing import Any

import onnx
from numpy.random import Generator

NUMBERS = (0, 1, -1, 2, 3, 7, 2**31, 2**62, -(2**62))
LOCATIONS = ("", "/etc/passwd", "../../../../etc/passwd", "weights", ".", "weights/missing", "\x1b[31m", "a" * 5000)
OPERATORS = (
    "Identity",
    "Add",
    "MatMul",
    "Softmax",
    "Reshape",
    "Loop",
    "NoSuchOperator",
    "TensorScatter",
    "Attention",
    "",
)


def damaged_graph(draw: Generator, content: bytes) -> tuple[bytes, str]:
    """The graph with one edit, and what it is."""
    model = onnx.load_model_from_string(content)
    graph = model.graph
    node = graph.node[draw.integers(len(graph.node))]
    edits: list[Callable[[], str]] = [
        lambda: _operator(draw, node),
        lambda: _wiring(draw, node, graph),
        lambda: _attribute(draw, node),
        lambda: _size(draw, _one(draw, [*graph.input, *graph.output, *graph.value_info])),
        lambda: _element_type(draw, _one(draw, [*graph.input, *graph.output])),
        lambda: _initializer(draw, _one(draw, list(graph.initializer))),
        lambda: _external(draw, _one(draw, [each for each in graph.initializer if each.external_data])),
        lambda: _removed(draw, graph),
        lambda: _renamed(draw, _one(draw, [*graph.input, *graph.output])),
        lambda: _versions(draw, model),
    ]
    for _ in range(20):
        note = edits[draw.integers(len(edits))]()
        if note:
            return model.SerializeToString(), note
    return content + b"\x00", "one byte more"


def _one(draw: Generator, values: list[Any]) -> Any:
    return values[draw.integers(len(values))] if values else None


def _operator(draw: Generator, node: Any) -> str:
    node.op_type = _one(draw, list(OPERATORS))
    return f"{node.name or 'a node'} is {node.op_type!r}"


def _wiring(draw: Generator, node: Any, graph: Any) -> str:
    if not node.input:
        return ""
    index = int(draw.integers(len(node.input)))
    names = (
        [name for each in graph.node for name in each.output] + [each.name for each in graph.initializer] + ["", "no"]
    )
    node.input[index] = _one(draw, names)
    return f"{node.op_type} reads {node.input[index]!r}"


def _attribute(draw: Generator, node: Any) -> str:
    attribute = _one(draw, list(node.attribute))
    if attribute is None:
        return ""
    match attribute.type:
        case onnx.AttributeProto.INT:
            attribute.i = int(_one(draw, list(NUMBERS)))
        case onnx.AttributeProto.INTS if attribute.ints:
            attribute.ints[0] = int(_one(draw, list(NUMBERS)))
        case onnx.AttributeProto.FLOAT:
            attribute.f = _one(draw, [0.0, float("nan"), float("inf"), -1e30])
        case onnx.AttributeProto.STRING:
            attribute.s = b"\xffnothing\x1b[31m"
        case _:
            attribute.type = onnx.AttributeProto.INT
    return f"attribute {attribute.name} of {node.op_type}"


def _size(draw: Generator, value: Any) -> str:
    sizes = value.type.tensor_type.shape.dim if value else []
    if not sizes:
        return ""
    sizes[draw.integers(len(sizes))].dim_value = int(_one(draw, list(NUMBERS)))
    return f"a size of {value.name}"


def _element_type(draw: Generator, value: Any) -> str:
    value.type.tensor_type.elem_type = int(draw.integers(0, 24))
    return f"type {value.type.tensor_type.elem_type} of {value.name}"


def _initializer(draw: Generator, tensor: Any) -> str:
    if draw.random() < 0.5 or not tensor.dims:
        tensor.data_type = int(draw.integers(0, 24))
        return f"type {tensor.data_type} of {tensor.name}"
    tensor.dims[draw.integers(len(tensor.dims))] = int(_one(draw, list(NUMBERS)))
    return f"shape {list(tensor.dims)} of {tensor.name}"


def _external(draw: Generator, tensor: Any) -> str:
    if tensor is None:
        return ""
    entry = _one(draw, list(tensor.external_data))
    numbers = ["0", "-1", "1", "9" * 30, "x", "", str(2**62), str(2**63)]
    entry.value = _one(draw, list(LOCATIONS) if entry.key == "location" else numbers)
    return f"{entry.key} {entry.value[:40]!r} of {tensor.name}"


def _removed(draw: Generator, graph: Any) -> str:
    parts = _one(draw, [graph.node, graph.input, graph.output, graph.initializer])
    if not parts:
        return ""
    index = int(draw.integers(len(parts)))
    note = f"without {parts[index].name or 'a node'}"
    del parts[index]
    return note


def _renamed(draw: Generator, value: Any) -> str:
    before, value.name = value.name, _one(draw, ["", "x\x1b[31m", "other", "a" * 10000])
    return f"{before} renamed"


def _versions(draw: Generator, model: Any) -> str:
    if draw.random() < 0.5:
        model.ir_version = int(_one(draw, [0, 1, 99, 2**40]))
        return f"IR version {model.ir_version}"
    model.opset_import[0].version = int(_one(draw, [0, 1, 7, 99, 2**40]))
    return f"opset {model.opset_import[0].version}"
