"""Refuses graphs that TensorRT accepts but computes wrongly.

The parser and the builder report what they do not support. They accept the following without a word, or refuse it so late and
in such terms that nobody finds the cause:

* `nonpad_kv_seqlen`, input 6 of Attention, is ignored: the whole padded cache is attended to.
* `is_causal` aligns the mask with the upper left corner: over a cache, the first query sees the first key only.
* A cache is updated in place. It has to be a graph input whose only reader is its TensorScatter, and the result a graph
  output; any other reader of the input races with the write.
* TensorScatter is understood along axis -2, in linear mode.
* Numbers of 64 bits. There are no doubles: they are computed in float32, constants clamped. Integers are computed, but
  outside fused kernels. They are for *indices*: what is made of nothing but `position`, `label` and other int64 inputs of rank 0
  or 1, shapes, and constants. Any other value of 64 bits (an input of higher rank, or one made from
  activations, as by Cast or ArgMax) is refused. In a text encoder `ids` and `mask`, of rank 2, are indices too.
* Operators outside the ONNX standard, as those of the cpu lowering.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import NodeProto, TensorProto, helper

from starflow.export.tensorrt.parse import graph_place
from starflow.runtime.plain.errors import ExportError

DOUBLE_WIDTH = (TensorProto.INT64, TensorProto.UINT64, TensorProto.DOUBLE, TensorProto.COMPLEX128)
NONPAD_KV_SEQLEN = 6
NETWORK_INDEX_RANK = 2  # of int64 inputs of a network beside the flow: `ids` and `mask` are [1, T]
# What changes where values lie, or their type, but not which cache they come from.
MOVES = {"Cast", "Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True)
class Misreading:
    """A place in a graph that TensorRT would get wrong."""

    node: str  # name of the node, or of the input or initializer where no node is at fault
    operator: str  # the node's operator; empty where there is none
    problem: str  # what stands there, and what TensorRT makes of it
    mend: str

    def __str__(self) -> str:
        place = f"node {self.node} ({self.operator})" if self.operator else self.node
        return f"{place}: {self.problem}; {self.mend}"


def guard_graph(path: str | os.PathLike[str], block: int | None = None, *, index_rank: int = 1) -> None:
    """Check that TensorRT understands a graph as it is meant. Weights are not read.

    Args:
        path: The graph.
        block: Index of its flow block, for messages.
        index_rank: Highest rank of an int64 input that counts as indices.

    Raises:
        ExportError: it does not; the message names the file, the flow block and the first such node.
    """
    try:
        found = misreadings(onnx.load(Path(path), load_external_data=False), index_rank=index_rank)
    except (DecodeError, OSError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"{path}: cannot be read as ONNX ({reason}); export the bundle again") from None
    if found:
        where = graph_place(Path(path), block)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ExportError(f"{where}: {found[0]}{more}")


def misreadings(model: onnx.ModelProto, *, index_rank: int = 1) -> list[Misreading]:
    """Everything in a model that TensorRT would misread, rule by rule and in the order of the nodes; see `guard_graph`."""
    graph = _Graph(model, index_rank)
    foreign = list(_operators(graph))
    if foreign:  # types cannot be inferred through an operator that ONNX does not know
        return foreign
    return [found for rule in (_attention, _caches, _wide_numbers) for found in rule(graph)]


class _Graph:
    """A model's nodes, also those inside If, Loop and Scan, with who makes and who reads each value."""

    def __init__(self, model: onnx.ModelProto, index_rank: int) -> None:
        self.model, self.index_rank = model, index_rank
        self.nodes = list(_nodes(model.graph))
        self.producers = {output: node for node in self.nodes for output in node.output if output}
        self.readers: dict[str, list[tuple[NodeProto, int]]] = {}
        for node in self.nodes:
            for index, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, index))
        self.inputs = {value.name: value.type.tensor_type for value in model.graph.input}
        self.outputs = {value.name for value in model.graph.output}

    def scatters(self) -> Iterator[NodeProto]:
        return (node for node in self.nodes if node.op_type == "TensorScatter")

    def comes_from_cache(self, value: str) -> bool:
        """Whether a value is a cache, before or after its update, however it was moved about."""
        producer = self.producers.get(value)
        if producer is None:
            return any(node.op_type == "TensorScatter" and index == 0 for node, index in self.readers.get(value, ()))
        if producer.op_type == "TensorScatter":
            return True
        return producer.op_type in MOVES and any(self.comes_from_cache(name) for name in producer.input if name)


def _nodes(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _at(node: NodeProto, problem: str, mend: str) -> Misreading:
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return Misreading(node.name or "/".join(node.output), operator, problem, mend)


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def _operators(graph: _Graph) -> Iterator[Misreading]:
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            yield _at(node, "is no standard ONNX operator", "build a portable variant")


def _attention(graph: _Graph) -> Iterator[Misreading]:
    mask = "give the mask explicitly, boolean: arange(capacity) <= position + arange(S)"
    for node in graph.nodes:
        if node.op_type != "Attention":
            continue
        if len(node.input) > NONPAD_KV_SEQLEN and node.input[NONPAD_KV_SEQLEN]:
            yield _at(
                node, "has nonpad_kv_seqlen (input 6), which TensorRT ignores: it attends to the unwritten cache", mask
            )
        if _attribute(node, "is_causal", 0) and any(graph.comes_from_cache(name) for name in node.input[1:3]):
            yield _at(node, "has is_causal over a cache, which TensorRT counts from the cache's start", mask)


def _caches(graph: _Graph) -> Iterator[Misreading]:
    for node in graph.scatters():
        cache, updated = node.input[0], node.output[0]
        if _attribute(node, "mode", b"linear") != b"linear":
            yield _at(node, "does not write in linear mode, the only one TensorRT has", 'use mode="linear"')
        axis = _attribute(node, "axis", -2)
        if axis != -2:
            yield _at(
                node,
                f"writes along axis {axis}, TensorRT along -2",
                "lay the cache out as [rows, heads, capacity, size]",
            )
        if cache not in graph.inputs:
            yield _at(node, f"updates {cache}, which is no input of the graph", "make the cache a graph input")
            continue
        if updated not in graph.outputs:
            yield _at(node, f"its result {updated} is no output of the graph", "make the updated cache a graph output")
        for reader, index in graph.readers[cache]:
            if (reader.op_type, index) != ("TensorScatter", 0):
                problem = f"reads the cache {cache} outside its TensorScatter, while TensorRT overwrites it"
                yield _at(reader, problem, f"read {updated}")
            elif reader is not node:
                yield _at(
                    reader, f"is one of several TensorScatter that update {cache}", "give each a cache of its own"
                )
        if cache in graph.outputs:
            problem = "is also an output of the graph, while TensorRT overwrites it"
            yield Misreading(f"cache {cache}", "", problem, f"return {updated}")


def _wide_numbers(graph: _Graph) -> Iterator[Misreading]:
    inferred = onnx.shape_inference.infer_shapes(graph.model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    for node in graph.nodes:  # inference keeps what it finds inside If, Loop and Scan to itself
        if node.op_type == "Cast":
            types.setdefault(node.output[0], int(_attribute(node, "to", TensorProto.UNDEFINED)))
    indices = {initializer.name for initializer in inferred.initializer}
    narrower = "compute in 16 or 32 bits"
    for initializer in inferred.initializer:
        if initializer.data_type == TensorProto.DOUBLE:
            yield Misreading(f"constant {initializer.name}", "", "is of 64 bits, TensorRT makes it float32", narrower)
    for name, kind in graph.inputs.items():
        if kind.elem_type == TensorProto.INT64 and len(kind.shape.dim) <= graph.index_rank:
            indices.add(name)
        elif kind.elem_type in DOUBLE_WIDTH:
            ranks = " and ".join(map(str, range(graph.index_rank + 1)))
            problem = f"is {_type_name(kind.elem_type)} of rank {len(kind.shape.dim)}; only int64 of rank {ranks} is for indices"
            yield Misreading(f"input {name}", "", problem, narrower)
    for node in graph.nodes:
        names = [name for name in node.input if name]
        if node.op_type in ("Shape", "Size") or all(name in indices for name in names):
            indices.update(node.output)
        for output in node.output:
            kind = types.get(output, TensorProto.UNDEFINED)
            if kind == TensorProto.INT64 and output in indices:
                continue
            if kind in DOUBLE_WIDTH:
                yield _at(node, f"makes {_type_name(kind)} that is no index", narrower)


def _type_name(kind: int) -> str:
    return TensorProto.DataType.Name(kind).lower()
