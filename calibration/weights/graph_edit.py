"""Putting quantised weights into a step graph. Its inputs and outputs stay as they are.

How a product with quantised weights is written:

*cpu* uses ONNX Runtime's MatMulNBits at accuracy level 4: weights are read as codes, activations are rounded to 8 bits on the
way, one scale for each row and block, and products are integers. *Wide* activations go through the same product twice, as
further rows: once as what 8 bits hold of them, once as what is left; together these are 15 bits, and weights are still
read once.

*cpu*, by row, uses MatMulInteger: activations are rounded to 8 bits with one scale for each row, in standard operators, so that
no row depends on another one. Both operands are unsigned with a zero point of 128. On processors with AVX2 and no VNNI,
ONNX Runtime adds products of unsigned and signed bytes in 16 bits, which saturate and give wrong sums without a word; its
product of unsigned bytes is exact everywhere, and no slower. Signed activations have no fast kernel at all.

*cuda* uses MatMulNBits as well; its kernel there reads codes and multiplies activations in half precision.

*portable* puts a DequantizeLinear before the product, for engines to fuse into it. Activations keep their type.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from starflow.calibration.weights.number_format import QuantizedMatrix
from starflow.calibration.weights.step_graph_weights import Norm, StepGraphWeights
from starflow.export.onnx_graph.builder import MICROSOFT

ZERO_POINT = 128  # of unsigned codes
REST_STEPS = 254  # steps of the second part of wide activations in one of the first: half a step is its code 127
CODE_TYPES = {"int8": TensorProto.INT8, "int4": TensorProto.INT4, "fp8": TensorProto.FLOAT8E4M3FN}


@dataclass(frozen=True)
class Replacement:
    """What takes the place of a matrix."""

    matrix: QuantizedMatrix
    # Of the cpu lowering alone: whether activations go in as two parts of 8 bits, and whether a row of them has one scale.
    wide: bool = False
    by_row: bool = False


@dataclass(frozen=True)
class StoredArray:
    """A new initializer: its ONNX type and dimensions, and its bytes as an array."""

    data_type: int
    dims: tuple[int, ...]
    content: NDArray


@dataclass
class EditedGraph:
    """A step graph with some weights replaced."""

    # Structure; weights that were not replaced are still references into the source's file.
    model: onnx.ModelProto
    # Content of the new initializers, which `model` holds without data.
    arrays: dict[str, StoredArray] = field(default_factory=dict)

    def add(self, name: str, data_type: int, dims: tuple[int, ...], content: NDArray) -> str:
        if name not in self.arrays:
            self.arrays[name] = StoredArray(data_type, dims, np.ascontiguousarray(content))
            self.model.graph.initializer.append(TensorProto(name=name, data_type=data_type, dims=dims))
        return name

    def add_float(self, name: str, array: NDArray) -> str:
        return self.add(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array)

    def embedded(self) -> onnx.ModelProto:
        """The model with its new initializers inside, for a graph that is soon thrown away."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in self.arrays:
                tensor.raw_data = self.arrays[tensor.name].content.tobytes()
        return model


Rewrite = Callable[[EditedGraph, NodeProto, str, Replacement], list[NodeProto]]


def edit_graph(
    source: StepGraphWeights,
    lowering: str,
    replacements: Mapping[str, Replacement],
    input_scales: Mapping[Norm, NDArray],
) -> EditedGraph:
    """A step graph with quantised weights.

    Args:
        lowering: `cpu`, `cuda` or `portable`.
        replacements: By name of the weight. Where a norm in `input_scales` precedes, of the matrix times these scales.
        input_scales: What a norm's output is divided by, [in], and the matrices that take it are multiplied by; powers of two.
            A norm before matrices that all stay is left alone.
    """
    edited = _copy(source)
    rename = {}
    for norm, scales in input_scales.items():
        if any(name in replacements for name in norm.weights):
            arrays = {name: source.array(name) / scales for name in norm.parameters}
            arrays |= {name: source.array(name) * scales for name in norm.weights if name not in replacements}
            for name, array in arrays.items():
                rename[name] = edited.add_float(f"{name}.scaled", array.astype(source.array(name).dtype))
    rewrite = REWRITES[lowering]()
    nodes = []
    for node in source.model.graph.node:
        weight = source.weight(node)
        if weight is not None and weight in replacements:
            nodes += rewrite(edited, node, weight, replacements[weight])
        else:
            nodes.append(_renamed(node, rename))
    return _finish(edited, nodes)


def simulate(source: StepGraphWeights, matrices: Mapping[str, NDArray]) -> EditedGraph:
    """The same graph with other values for some weights."""
    edited = _copy(source)
    rename = {name: edited.add_float(f"{name}.simulated", array) for name, array in matrices.items()}
    return _finish(edited, [_renamed(node, rename) for node in source.model.graph.node])


def _copy(source: StepGraphWeights) -> EditedGraph:
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    return EditedGraph(model)


def _finish(edited: EditedGraph, nodes: list[NodeProto]) -> EditedGraph:
    graph = edited.model.graph
    used = {value.name for value in graph.output}
    alive = []
    for node in reversed(nodes):  # what cast a weight that is gone goes as well
        if not used.isdisjoint(node.output):
            alive.append(node)
            used.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(alive))
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if any(node.domain == MICROSOFT for node in nodes) and all(
        o.domain != MICROSOFT for o in edited.model.opset_import
    ):
        edited.model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return edited


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    return copy


class _Portable:
    """DequantizeLinear, then the product as it was."""

    def __call__(self, edited: EditedGraph, node: NodeProto, name: str, replacement: Replacement) -> list[NodeProto]:
        matrix = replacement.matrix
        kind = matrix.format.name
        codes = pack_nibbles(matrix.codes) if kind == "int4" else matrix.codes
        values = edited.add(f"{name}.{kind}", CODE_TYPES[kind], matrix.codes.shape, codes)
        per_row = matrix.scales.shape[1] == 1
        scales = edited.add_float(f"{name}.{kind}.scales", matrix.scales[:, 0] if per_row else matrix.scales)
        attributes: dict[str, Any] = {"axis": 0} if per_row else {"axis": 1, "block_size": matrix.block}
        wide = f"{name}.dequantized"
        dequantize = helper.make_node(
            "DequantizeLinear", [values, scales], [wide], name=f"{node.name}/DequantizeLinear", **attributes
        )
        return [dequantize, _renamed(node, {name: wide})]


class _Cuda:
    """MatMulNBits, whose inputs and outputs are those of the product."""

    attributes: ClassVar[dict[str, Any]] = {}

    def __call__(self, edited: EditedGraph, node: NodeProto, name: str, replacement: Replacement) -> list[NodeProto]:
        codes, scales, product = self._stored(edited, name, replacement.matrix)
        ends = ["", "", node.input[2]] if len(node.input) > 2 else []
        inputs = [node.input[0], codes, scales, *ends]
        return [helper.make_node("MatMulNBits", inputs, list(node.output), name=node.name, domain=MICROSOFT, **product)]

    def _stored(self, edited: EditedGraph, name: str, matrix: QuantizedMatrix) -> tuple[str, str, dict[str, Any]]:
        """Names of the codes and the scales, and the attributes of the product."""
        (outputs, inputs), kind, packed = matrix.codes.shape, matrix.format.name, packed_blocks(matrix)
        codes = edited.add(f"{name}.{kind}", TensorProto.UINT8, packed.shape, packed)
        scales = edited.add_float(f"{name}.{kind}.scales", matrix.scales)
        product = {"K": inputs, "N": outputs, "bits": matrix.format.bits, "block_size": matrix.block}
        return codes, scales, product | self.attributes


class _Operators:
    """Operators whose results have names below one name, and their constants."""

    def __init__(self, edited: EditedGraph, base: str) -> None:
        self._initializers, self._base = edited.model.graph.initializer, base
        self.nodes: list[NodeProto] = []

    def __call__(self, kind: str, *operands: str, **attributes: Any) -> str:
        result = f"{self._base}/{kind}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(operands), [result], name=result, **attributes))
        return result

    def constant(self, what: str, array: NDArray) -> str:
        name = f"const.{what}"  # small: it stays in the graph
        if all(tensor.name != name for tensor in self._initializers):
            self._initializers.append(numpy_helper.from_array(array, name))
        return name

    def step(self, value: str, axis: int) -> str:
        """The step by which 8 bits reach the largest magnitude along an axis."""
        peak = self("ReduceMax", self("Abs", value), self.constant(f"axis{axis}", np.array([axis])), keepdims=1)
        peak = self("Max", peak, self.constant("tiny", np.array(1e-30, np.float32)))  # zeros have a step as well
        return self("Mul", peak, self.constant("int8_step", np.array(1 / 127, np.float32)))


class _Cpu(_Cuda):
    """MatMulNBits or MatMulInteger with activations of 8 bits, in one part or two."""

    attributes: ClassVar[dict[str, Any]] = {"accuracy_level": 4}

    def __init__(self) -> None:
        self._parts: dict[tuple[str, int], str] = {}  # activations in two parts, which several products may share
        self._rows: dict[tuple[str, bool], tuple[str, str]] = {}  # codes and steps of rows, likewise

    def __call__(self, edited: EditedGraph, node: NodeProto, name: str, replacement: Replacement) -> list[NodeProto]:
        if replacement.by_row:
            return self._by_row(edited, node, name, replacement)
        if not replacement.wide:
            return super().__call__(edited, node, name, replacement)
        codes, scales, product = self._stored(edited, name, replacement.matrix)
        both, nodes = self._two_parts(edited, node.input[0], product["K"], product["block_size"])
        doubled, halves = f"{node.name}/both", [f"{node.name}/first", f"{node.name}/rest"]
        return [
            *nodes,
            helper.make_node(
                "MatMulNBits", [both, codes, scales], [doubled], name=node.name, domain=MICROSOFT, **product
            ),
            helper.make_node("Split", [doubled], halves, name=f"{node.name}/Split", axis=0, num_outputs=2),
            helper.make_node("Sum", [*halves, *node.input[2:]], list(node.output), name=f"{node.name}/Sum"),
        ]

    def _two_parts(self, edited: EditedGraph, value: str, inputs: int, block: int) -> tuple[str, list[NodeProto]]:
        """x [M, in] as [what 8 bits hold of it; the rest], [2 M, in]; the product's own rounding keeps the first part."""
        key = (value, block)
        if key in self._parts:
            return self._parts[key], []
        op = _Operators(edited, f"{value}/parts{block}")
        shape = op.constant(f"blocks.{inputs}.{block}", np.array([-1, inputs // block, block]))
        blocks = op("Reshape", value, shape)
        step = op.step(blocks, 2)
        first = op("Mul", op("Round", op("Div", blocks, step)), step)
        rest = op("Sub", blocks, first)
        stacked = op("Concat", first, rest, axis=0)
        self._parts[key] = op("Reshape", stacked, op.constant(f"rows.{inputs}", np.array([-1, inputs])))
        return self._parts[key], op.nodes

    def _by_row(self, edited: EditedGraph, node: NodeProto, name: str, replacement: Replacement) -> list[NodeProto]:
        """MatMulInteger, whose sums are multiplied by the step of their row and the scale of their output."""
        matrix, wide = replacement.matrix, replacement.wide
        (rows, step), nodes = self._codes_of_rows(edited, node.input[0], wide)
        codes = (matrix.codes.astype(np.int16) + ZERO_POINT).astype(np.uint8).T
        stored = edited.add(f"{name}.int8", TensorProto.UINT8, codes.shape, codes)
        scales = edited.add_float(f"{name}.int8.scales", matrix.scales[:, 0])
        op = _Operators(edited, node.name)
        zero = op.constant("zero_point", np.array(ZERO_POINT, np.uint8))
        sums = op("Cast", op("MatMulInteger", rows, stored, zero, zero), to=TensorProto.FLOAT)
        if wide:
            halves = [f"{node.name}/first", f"{node.name}/rest"]
            op.nodes.append(helper.make_node("Split", [sums], halves, name=f"{node.name}/Split", axis=0, num_outputs=2))
            rest = op("Mul", halves[1], op.constant("int8_rest", np.array(1 / REST_STEPS, np.float32)))
            sums = op("Add", halves[0], rest)
        product = op("Mul", op("Mul", sums, step), scales)
        if len(node.input) > 2:
            op("Add", product, node.input[2])
        op.nodes[-1].output[:] = node.output
        return [*nodes, *op.nodes]

    def _codes_of_rows(self, edited: EditedGraph, value: str, wide: bool) -> tuple[tuple[str, str], list[NodeProto]]:
        """x [M, in] as codes of 8 bits and a step for each row; wide, [2 M, in]: below them those of what they leave."""
        key = (value, wide)
        if key in self._rows:
            return self._rows[key], []
        op = _Operators(edited, f"{value}/rows{'.wide' if wide else ''}")
        step = op.step(value, 1)
        scaled = op("Div", value, step)
        rounded = op("Round", scaled)
        if wide:
            rest = op("Sub", scaled, rounded)
            rest = op("Round", op("Mul", rest, op.constant("int8_rest_steps", np.array(REST_STEPS, np.float32))))
            rounded = op("Concat", rounded, rest, axis=0)
        shifted = op("Add", rounded, op.constant("int8_shift", np.array(ZERO_POINT, np.float32)))
        self._rows[key] = op("Cast", shifted, to=TensorProto.UINT8), step
        return self._rows[key], op.nodes


REWRITES: dict[str, type[_Cuda] | type[_Portable]] = {"cpu": _Cpu, "cuda": _Cuda, "portable": _Portable}


def pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two 4-bit codes to a byte, the first one in the low half; the last axis is even."""
    halves = codes.astype(np.uint8) & 0xF
    return (halves[..., 0::2] | halves[..., 1::2] << 4).astype(np.uint8)


def packed_blocks(matrix: QuantizedMatrix) -> NDArray[np.uint8]:
    """[out, blocks, bytes] as MatMulNBits reads codes: unsigned, with a zero point of half their range."""
    blocks = matrix.codes.reshape(len(matrix.codes), -1, matrix.block)
    if matrix.format.bits == 4:
        return pack_nibbles(blocks + np.int8(8))
    return (blocks.astype(np.int16) + 128).astype(np.uint8)
