"""Every layer kind and mode the interpreter knows, against ONNX Runtime on one operator."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from starflow.export.tensorrt.interpreter.arithmetic import erf
from starflow.export.tensorrt.interpreter.interpreter import NetworkInterpreter
from starflow.export.tensorrt.interpreter.layers import read_layers
from tests.export.tensorrt.interpreter.onnx_graphs import Arrays, assert_same, parse, run_onnxruntime, write_graph

pytest.importorskip("tensorrt_rtx")

RNG = np.random.default_rng(0)


def real(*shape: int) -> NDArray:
    return RNG.standard_normal(shape).astype(np.float32)


def whole(low: int, high: int, *shape: int) -> NDArray:
    return RNG.integers(low, high, shape)


def true_or_false(*shape: int) -> NDArray:
    return RNG.random(shape) < 0.5


def check(
    folder: Path,
    operator: str,
    inputs: Arrays,
    constants: Arrays | None = None,
    dynamic: bool = False,
    **attributes: Any,
) -> None:
    """One node over the inputs, then the constants ("" leaves an optional input out)."""
    constants = constants or {}
    node = helper.make_node(operator, [*inputs, *constants], ["y"], name=f"layer0/{operator}", **attributes)
    sized = [name for name, array in inputs.items() if dynamic and array.ndim > 1]
    known = {name: array for name, array in constants.items() if name}
    path = write_graph(folder / "graph.onnx", [node], inputs, ["y"], constants=known, dynamic=sized)
    assert_same(path, inputs)


@pytest.mark.parametrize(
    "operator", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Less", "Greater", "Equal", "LessOrEqual"]
)
def test_elementwise(tmp_path: Path, operator: str) -> None:
    check(tmp_path, operator, {"a": real(2, 3, 4), "b": real(3, 1)}, dynamic=True)


def test_power(tmp_path: Path) -> None:
    check(tmp_path, "Pow", {"a": np.abs(real(3, 4)), "b": real(3, 4)})


def test_integer_division_rounds_towards_zero(tmp_path: Path) -> None:
    check(tmp_path, "Div", {"a": np.array([[7, -7, 7, -7, 6]]), "b": np.array([[2, 2, -2, -2, -3]])})


def test_integer_floor_division_and_remainder(tmp_path: Path) -> None:
    check(tmp_path, "Mod", {"a": np.array([[7, -7, 7, -7, 6]]), "b": np.array([[2, 2, -2, -2, -3]])})


@pytest.mark.parametrize("operator", ["And", "Or", "Xor"])
def test_logic(tmp_path: Path, operator: str) -> None:
    check(tmp_path, operator, {"a": true_or_false(3, 4), "b": true_or_false(3, 4)})


@pytest.mark.parametrize(
    "operator",
    ["Exp", "Sqrt", "Log", "Reciprocal", "Abs", "Neg", "Sin", "Cos", "Ceil", "Floor", "Erf", "Sign", "Round", "IsNaN"],
)
def test_unary(tmp_path: Path, operator: str) -> None:
    value = real(3, 7) * 3
    value = np.abs(value) + 0.1 if operator in ("Sqrt", "Log", "Reciprocal") else value
    if operator == "Round":
        value[0, :4] = [0.5, 1.5, -0.5, 2.5]
    if operator == "IsNaN":
        value[0, :2] = [np.nan, np.inf]
    check(tmp_path, operator, {"x": value}, dynamic=True)


def test_not(tmp_path: Path) -> None:
    check(tmp_path, "Not", {"x": true_or_false(3, 4)})


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("Relu", {}),
        ("Sigmoid", {}),
        ("Tanh", {}),
        ("LeakyRelu", {"alpha": 0.3}),
        ("Elu", {"alpha": 0.7}),
        ("Softplus", {}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
        ("Gelu", {}),
        ("Gelu", {"approximate": "tanh"}),
    ],
)
def test_activation(tmp_path: Path, operator: str, attributes: dict[str, Any]) -> None:
    check(tmp_path, operator, {"x": real(4, 9) * 3}, dynamic=True, **attributes)


def test_clip(tmp_path: Path) -> None:
    check(tmp_path, "Clip", {"x": real(4, 9)}, {"low": np.array(-0.4, np.float32), "high": np.array(0.6, np.float32)})


def test_erf_is_accurate_everywhere() -> None:
    x = np.linspace(-6, 6, 20_001, dtype=np.float32)
    exact = np.array([math.erf(value) for value in x.tolist()])
    assert np.abs(erf(x) - exact).max() < 5e-7


@pytest.mark.parametrize(
    ("source", "target"), [("real", "INT32"), ("real", "INT64"), ("whole", "FLOAT"), ("real", "BOOL")]
)
def test_cast(tmp_path: Path, source: str, target: str) -> None:
    value = np.array([[-2.7, -0.4, 0.0, 0.6, 1.5, 8.9]], np.float32) if source == "real" else whole(-9, 9, 1, 5)
    check(tmp_path, "Cast", {"x": value}, to=getattr(onnx.TensorProto, target))


def test_identity(tmp_path: Path) -> None:
    check(tmp_path, "Identity", {"x": real(3, 4)}, dynamic=True)


def test_select(tmp_path: Path) -> None:
    check(tmp_path, "Where", {"condition": true_or_false(1, 3, 1), "a": real(2, 3, 4), "b": real(2, 1, 4)})


def test_fill(tmp_path: Path) -> None:
    """Range over a number of tokens that is only known at run time."""
    x = real(2, 5)
    nodes = [
        helper.make_node("Shape", ["x"], ["size"], start=1, end=2),
        helper.make_node("Squeeze", ["size"], ["count"]),
        helper.make_node("Range", ["zero", "count", "one"], ["y"]),
    ]
    constants = {"zero": np.array(0), "one": np.array(1)}
    assert_same(write_graph(tmp_path / "g.onnx", nodes, {"x": x}, ["y"], constants=constants, dynamic=["x"]), {"x": x})


@pytest.mark.parametrize("shape", [[0, -1], [-1, 2, 4], [3, 0, -1], [24]])
def test_reshape(tmp_path: Path, shape: list[int]) -> None:
    check(tmp_path, "Reshape", {"x": real(3, 2, 4)}, {"shape": np.array(shape)}, dynamic=True)


def test_transpose(tmp_path: Path) -> None:
    check(tmp_path, "Transpose", {"x": real(2, 3, 4, 5)}, dynamic=True, perm=[0, 2, 3, 1])


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [([1], [3], [1], [1]), ([0, 1], [2, 4], [0, 2], [1, 2]), ([-1], [-9], [2], [-1])],
)
def test_slice(tmp_path: Path, starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> None:
    bounds = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    check(
        tmp_path, "Slice", {"x": real(2, 3, 5)}, {name: np.array(value) for name, value in bounds.items()}, dynamic=True
    )


def test_slice_to_a_length_that_is_an_input(tmp_path: Path) -> None:
    """The first S entries of a table: bounds are tensors."""
    x, table = real(2, 4), real(9)
    nodes = [
        helper.make_node("Shape", ["x"], ["count"], start=1, end=2),
        helper.make_node("Slice", ["table", "zero", "count"], ["y"]),
    ]
    constants = {"table": table, "zero": np.array([0])}
    assert_same(write_graph(tmp_path / "g.onnx", nodes, {"x": x}, ["y"], constants=constants, dynamic=["x"]), {"x": x})


def test_expand(tmp_path: Path) -> None:
    check(tmp_path, "Expand", {"x": real(3, 1, 4)}, {"shape": np.array([2, 1, 5, 1])})


def test_split(tmp_path: Path) -> None:
    x = real(3, 4, 6)
    node = helper.make_node("Split", ["x", "parts"], ["a", "b"], axis=2)
    graph = write_graph(
        tmp_path / "g.onnx", [node], {"x": x}, ["a", "b"], constants={"parts": np.array([2, 4])}, dynamic=["x"]
    )
    assert_same(graph, {"x": x})


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gather(tmp_path: Path, axis: int) -> None:
    check(tmp_path, "Gather", {"x": real(4, 4, 4), "indices": whole(0, 4, 2, 3)}, axis=axis)


def test_gather_elements(tmp_path: Path) -> None:
    check(tmp_path, "GatherElements", {"x": real(4, 5), "indices": whole(0, 5, 4, 3)}, axis=1)


def test_gather_nd(tmp_path: Path) -> None:
    check(tmp_path, "GatherND", {"x": real(4, 5, 3), "indices": whole(0, 4, 6, 2)})


def test_scatter_nd(tmp_path: Path) -> None:
    inputs = {"x": real(5, 4, 3), "indices": np.array([[3, 0], [0, 2]]), "updates": real(2, 3)}
    check(tmp_path, "ScatterND", inputs)


@pytest.mark.parametrize("pads", [[1, 0, 2, 3], [0, -1, 1, 0]])
def test_pad(tmp_path: Path, pads: list[int]) -> None:
    check(tmp_path, "Pad", {"x": real(4, 5)}, {"pads": np.array(pads), "value": np.array(0.5, np.float32)})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"pads": [0, 1, 2, 0], "strides": [1, 2]},  # more on one side, as the encoders of Stable Diffusion
        {"dilations": [2, 1], "group": 2},
    ],
)
def test_convolution(tmp_path: Path, attributes: dict[str, Any], bias: bool) -> None:
    """Kernel and bias are constants of the layer, or inputs where the graph widens them."""
    kernel = real(6, 4 // attributes.get("group", 1), 3, 3)
    weights = {"kernel": kernel} | ({"bias": real(6)} if bias else {})
    check(tmp_path, "Conv", {"x": real(2, 4, 8, 9)}, weights, **attributes)
    check(tmp_path, "Conv", {"x": real(2, 4, 8, 9)} | weights, **attributes)


@pytest.mark.parametrize("rows", [6, 3])
def test_resize_to_the_nearest_pixel(tmp_path: Path, rows: int) -> None:
    how: dict[str, Any] = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    scales = np.array([1, 1, rows / 3, 2], np.float32)
    check(tmp_path, "Resize", {"x": real(2, 2, 3, 4)}, {"": real(0), "scales": scales}, **how)


def test_concatenation(tmp_path: Path) -> None:
    check(tmp_path, "Concat", {"a": real(2, 3, 4), "b": real(2, 3, 1)}, dynamic=True, axis=2)


def test_shape(tmp_path: Path) -> None:
    check(tmp_path, "Shape", {"x": real(2, 3, 4)}, dynamic=True)


@pytest.mark.parametrize("axes", [[1], [1, 3], None])
def test_squeeze(tmp_path: Path, axes: list[int] | None) -> None:
    check(tmp_path, "Squeeze", {"x": real(2, 1, 3, 1)}, None if axes is None else {"axes": np.array(axes)})


@pytest.mark.parametrize("axes", [[0], [1, 3], [-1]])
def test_unsqueeze(tmp_path: Path, axes: list[int]) -> None:
    check(tmp_path, "Unsqueeze", {"x": real(2, 3)}, {"axes": np.array(axes)}, dynamic=True)


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reduce(tmp_path: Path, operator: str, keepdims: int) -> None:
    check(tmp_path, operator, {"x": real(3, 4, 5)}, {"axes": np.array([0, 2])}, dynamic=True, keepdims=keepdims)


@pytest.mark.parametrize("axis", [1, 2])
def test_softmax(tmp_path: Path, axis: int) -> None:
    check(tmp_path, "Softmax", {"x": real(3, 4, 5) * 4}, dynamic=True, axis=axis)


@pytest.mark.parametrize(
    ("a", "b"), [((3, 4), (4, 5)), ((2, 3, 4, 5), (5, 6)), ((1, 3, 4, 5), (2, 1, 5, 6)), ((4,), (4, 5)), ((3, 4), (4,))]
)
def test_matrix_multiply(tmp_path: Path, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check(tmp_path, "MatMul", {"a": real(*a), "b": real(*b)})


def test_transposed_matrix_multiply(tmp_path: Path) -> None:
    inputs = {"a": real(4, 3), "b": real(5, 4), "c": real(5)}
    check(tmp_path, "Gemm", inputs, transA=1, transB=1, alpha=0.5, beta=2.0)


def test_layer_normalization(tmp_path: Path) -> None:
    parts = {"scale": real(6), "bias": real(6)}
    check(tmp_path, "LayerNormalization", {"x": real(3, 5, 6) + 2}, parts, dynamic=True, axis=-1, epsilon=1e-3)


def test_rms_normalization(tmp_path: Path) -> None:
    check(tmp_path, "RMSNormalization", {"x": real(3, 5, 6)}, {"scale": real(6)}, dynamic=True, axis=-1, epsilon=1e-3)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(tmp_path: Path, interleaved: int) -> None:
    angle = real(9, 4)
    inputs = {"x": real(2, 3, 5, 8)}
    tables = {"cos": np.cos(angle), "sin": np.sin(angle), "ids": whole(0, 9, 2, 5)}
    check(tmp_path, "RotaryEmbedding", inputs, tables, interleaved=interleaved)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding_of_a_part(tmp_path: Path, interleaved: int) -> None:
    angle = real(9, 2)
    inputs = {"x": real(2, 3, 5, 8)}
    tables = {"cos": np.cos(angle), "sin": np.sin(angle), "ids": whole(0, 9, 2, 5)}
    check(tmp_path, "RotaryEmbedding", inputs, tables, interleaved=interleaved, rotary_embedding_dim=4)


def test_rotary_embedding_without_positions(tmp_path: Path) -> None:
    angle = real(2, 5, 4)
    check(tmp_path, "RotaryEmbedding", {"x": real(2, 3, 5, 8)}, {"cos": np.cos(angle), "sin": np.sin(angle)})


def heads(q: int, kv: int) -> dict[str, NDArray]:
    return {"q": real(2, q, 5, 8), "k": real(2, kv, 7, 8), "v": real(2, kv, 7, 8)}


@pytest.mark.parametrize(("q", "kv"), [(4, 4), (4, 2), (6, 1)])
def test_attention(tmp_path: Path, q: int, kv: int) -> None:
    check(tmp_path, "Attention", heads(q, kv), scale=0.3)


def test_attention_under_a_boolean_mask(tmp_path: Path) -> None:
    mask = true_or_false(5, 7)
    mask[:, 0] = True  # a row that may attend to nothing has no defined result
    check(tmp_path, "Attention", heads(4, 2) | {"mask": mask}, scale=0.3)


def test_attention_under_an_additive_mask(tmp_path: Path) -> None:
    check(tmp_path, "Attention", heads(4, 2) | {"mask": real(2, 4, 5, 7)}, scale=0.3)


def test_causal_attention_is_aligned_to_the_upper_left(tmp_path: Path) -> None:
    check(tmp_path, "Attention", heads(4, 2), scale=0.3, is_causal=1)


def test_causal_attention_aligned_to_the_lower_right(tmp_path: Path) -> None:
    """ONNX cannot say it, TensorRT can: the last query sees every key."""
    inputs = heads(4, 2)
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], scale=0.3, is_causal=1)
    parsed = parse(write_graph(tmp_path / "causal.onnx", [node], inputs, ["y"]))
    layers = (layer for layer in read_layers(parsed) if layer.kind == "ATTENTION_INPUT")
    next(layers).attributes.attention.causal_kind = parsed.flavour.trt.CausalMaskKind.LOWER_RIGHT
    found = NetworkInterpreter(parsed).run(inputs)["y"]

    mask = {"mask": np.tri(5, 7, 2, dtype=np.bool_)}
    node = helper.make_node("Attention", ["q", "k", "v", "mask"], ["y"], scale=0.3)
    masked = write_graph(tmp_path / "masked.onnx", [node], inputs | mask, ["y"])
    np.testing.assert_allclose(found, run_onnxruntime(masked, inputs | mask)["y"], atol=2e-6)
