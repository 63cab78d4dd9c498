"""Quantised products against the same arithmetic in NumPy, in graphs of one product and in step graphs."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from starflow.calibration.weights.graph_edit import Replacement, edit_graph, pack_nibbles
from starflow.calibration.weights.number_format import (
    FP8,
    INT4,
    INT8,
    QuantizedMatrix,
    WeightFormat,
    largest_scales,
    nearest_codes,
)
from starflow.calibration.weights.step_graph_weights import Norm, StepGraphWeights

OUTPUTS, INPUTS = 48, 192


def one_product(folder: Path, dtype: Any = np.float32, bias: bool = True) -> tuple[StepGraphWeights, NDArray, NDArray]:
    """A graph x W^T + b on disk, with W and b."""
    generator = np.random.default_rng(0)
    w = generator.standard_normal((OUTPUTS, INPUTS)).astype(dtype)
    b = generator.standard_normal(OUTPUTS).astype(dtype) if bias else np.zeros(OUTPUTS, dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = ["x", "w", "b"] if bias else ["x", "w"]
    graph = helper.make_graph(
        [helper.make_node("Gemm", names, ["y"], name="product", transB=1)],
        "product",
        [helper.make_tensor_value_info("x", kind, ["S", INPUTS])],
        [helper.make_tensor_value_info("y", kind, ["S", OUTPUTS])],
        [numpy_helper.from_array(w, "w"), *([numpy_helper.from_array(b, "b")] if bias else [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    model.ir_version = 11
    onnx.save(model, folder / "product.onnx")
    return StepGraphWeights(folder / "product.onnx"), w, b


def run(source: StepGraphWeights, lowering: str, replacement: Replacement, x: NDArray) -> NDArray:
    model = edit_graph(source, lowering, {"w": replacement}, {}).embedded()
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def rounded(w: NDArray, target: WeightFormat, block: int, dtype: Any = np.float32) -> QuantizedMatrix:
    return nearest_codes(
        w.astype(np.float32), largest_scales(w.astype(np.float32), target, block, np.dtype(dtype)), target
    )


def held_by_8_bits(rows: int, block: int) -> NDArray:
    """Activations that are multiples of 1/127 of the largest in their block, so rounding them to 8 bits changes nothing."""
    x = np.random.default_rng(1).integers(-127, 128, (rows, INPUTS)).astype(np.float32)
    x[:, ::block] = 127
    return x * np.float32(0.01)


@pytest.mark.parametrize(("target", "block"), [(INT8, 64), (INT8, 32), (INT8, 16), (INT4, 32), (INT4, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_cpu_product_multiplies_by_the_dequantised_matrix(
    tmp_path: Path, target: WeightFormat, block: int, bias: bool
) -> None:
    source, w, b = one_product(tmp_path, bias=bias)
    matrix = rounded(w, target, block)
    x = held_by_8_bits(5, block)
    expected = x.astype(np.float64) @ matrix.dequantized().T + b
    assert np.abs(run(source, "cpu", Replacement(matrix), x) - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(x @ w.T + b - expected).max() > 1e-3 * np.abs(expected).max(), "rounding shows"


@pytest.mark.parametrize("bias", [True, False])
def test_wide_activations_lose_next_to_nothing(tmp_path: Path, bias: bool) -> None:
    source, w, b = one_product(tmp_path, bias=bias)
    matrix = rounded(w, INT8, 64)
    x = np.random.default_rng(2).standard_normal((7, INPUTS)).astype(np.float32)
    x[3, 64:128] = 0  # a block of zeros
    x[4] = 0
    x[5] *= 1e4
    expected = x.astype(np.float64) @ matrix.dequantized().T + b
    size = np.maximum(np.linalg.norm(expected, axis=1), 1e-30)
    narrow, wide = (
        np.linalg.norm(run(source, "cpu", Replacement(matrix, wide), x) - expected, axis=1) / size
        for wide in (False, True)
    )
    assert wide.max() < 1e-4
    assert narrow[[0, 1, 2, 5]].min() > 2e-3, "8 bits do lose something"


def by_row_in_numpy(x: NDArray, matrix: QuantizedMatrix, bias: NDArray, wide: bool) -> NDArray:
    """The product by row with sums in 64-bit integers, and the rest in float32, operation by operation."""
    peak = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-30))
    step = peak * np.float32(1 / 127)
    scaled = x / step
    codes = np.rint(scaled)
    whole = matrix.codes.astype(np.int64).T
    sums = (codes.astype(np.int64) @ whole).astype(np.float32)
    if wide:
        rest = np.rint((scaled - codes) * np.float32(254)).astype(np.int64)
        sums = sums + (rest @ whole).astype(np.float32) * np.float32(1 / 254)
    assert np.abs(codes).max() <= 127
    return sums * step * matrix.scales[:, 0] + bias


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_product_by_row_is_exact_integer_arithmetic(tmp_path: Path, wide: bool, bias: bool) -> None:
    source, w, b = one_product(tmp_path, bias=bias)
    matrix = rounded(w, INT8, INPUTS)
    x = np.random.default_rng(2).standard_normal((9, INPUTS)).astype(np.float32)
    x[3, 64:] = 0
    x[4] = 0
    x[5] *= 1e4
    found = run(source, "cpu", Replacement(matrix, wide, by_row=True), x)
    assert np.array_equal(found, by_row_in_numpy(x, matrix, b, wide))
    expected = x.astype(np.float64) @ matrix.dequantized().T + b
    error = np.linalg.norm(found - expected, axis=1) / np.maximum(np.linalg.norm(expected, axis=1), 1e-30)
    assert error.max() < 1e-4 if wide else error[[0, 1, 2, 5]].min() > 2e-3, (
        "8 bits do lose something, 15 next to nothing"
    )


@pytest.mark.parametrize("rows", [1, 2, 8, 33])
@pytest.mark.parametrize("signs", ["same", "alternating", "random"])
def test_product_by_row_does_not_saturate(tmp_path: Path, rows: int, signs: str) -> None:
    """The largest codes there are: bytes of 255 times codes of 127, whose pairs do not fit into 16 bits."""
    source, _, b = one_product(tmp_path)
    draw = np.random.default_rng(rows)
    signs_of = {
        "same": lambda shape: np.ones(shape),
        "alternating": lambda shape: np.where(np.arange(shape[1]) % 2, 1.0, -1.0) * np.ones(shape),
        "random": lambda shape: draw.choice([-1.0, 1.0], shape),
    }[signs]
    codes = (127 * signs_of((OUTPUTS, INPUTS))).astype(np.int8)
    matrix = QuantizedMatrix(INT8, codes, np.full((OUTPUTS, 1), 0.25, np.float32))
    x = signs_of((rows, INPUTS)).astype(np.float32)
    for wide in (False, True):
        found = run(source, "cpu", Replacement(matrix, wide, by_row=True), x)
        assert np.array_equal(found, by_row_in_numpy(x, matrix, b, wide))


def test_rows_do_not_depend_on_each_other(tmp_path: Path) -> None:
    source, w, _ = one_product(tmp_path)
    matrix = rounded(w, INT8, INPUTS)
    x = np.random.default_rng(6).standard_normal((8, INPUTS)).astype(np.float32) * np.logspace(-3, 3, 8)[:, None]
    x = x.astype(np.float32)
    for wide in (False, True):
        together = run(source, "cpu", Replacement(matrix, wide, by_row=True), x)
        alone = [run(source, "cpu", Replacement(matrix, wide, by_row=True), row[None]) for row in x]
        assert np.array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(tmp_path: Path, wrong: float) -> None:
    """8 bits must not hide that a model broke down."""
    source, w, _ = one_product(tmp_path)
    x = np.ones((3, INPUTS), np.float32)
    x[1] = wrong
    for wide in (False, True):
        found = run(source, "cpu", Replacement(rounded(w, INT8, INPUTS), wide, by_row=True), x)
        assert not np.isfinite(found[1]).any() and np.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize(
    ("target", "block"), [(INT8, INPUTS), (FP8, INPUTS), (INT4, 64), (INT4, 32), (INT8, 64)], ids=str
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_portable_product_multiplies_by_the_dequantised_matrix(
    tmp_path: Path, target: WeightFormat, block: int, dtype: Any
) -> None:
    source, w, b = one_product(tmp_path, dtype)
    matrix = rounded(w, target, block, dtype)
    x = np.random.default_rng(3).standard_normal((5, INPUTS)).astype(dtype)
    expected = x.astype(np.float64) @ matrix.dequantized().astype(dtype).astype(np.float64).T + b
    tolerance = 1e-5 if dtype == np.float32 else 2e-3
    assert np.abs(run(source, "portable", Replacement(matrix), x) - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("target", "block"), [(INT8, 64), (INT8, 32), (INT4, 32)], ids=str)
def test_cuda_product_keeps_its_activations(tmp_path: Path, target: WeightFormat, block: int) -> None:
    """The product of the cuda lowering, FusedMatMul; its kernel on a CPU rounds no activations unless it is told to."""
    source, w, _ = one_product(tmp_path, bias=False)
    node = source.model.graph.node[0]
    node.op_type, node.domain = "FusedMatMul", "com.microsoft"
    source.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(source.model, source.path)
    fused = StepGraphWeights(source.path)
    assert [(each.weight, each.outputs, each.inputs) for each in fused.linears.values()] == [("w", OUTPUTS, INPUTS)]
    matrix = rounded(w, target, block)
    x = np.random.default_rng(4).standard_normal((5, INPUTS)).astype(np.float32)
    expected = x.astype(np.float64) @ matrix.dequantized().T
    assert np.abs(run(fused, "cuda", Replacement(matrix), x) - expected).max() < 1e-5 * np.abs(expected).max()


def test_nibbles_are_packed_as_onnx_packs_them() -> None:
    codes = np.random.default_rng(4).integers(-8, 8, (6, 10)).astype(np.int8)
    tensor = TensorProto(data_type=TensorProto.INT4, dims=codes.shape, raw_data=pack_nibbles(codes).tobytes())
    assert np.array_equal(numpy_helper.to_array(tensor), codes.astype(ml_dtypes.int4))


def test_scaling_in_a_norm_leaves_the_function_unchanged_bit_for_bit(tiny_bundle: Path, tmp_path: Path) -> None:
    """Matrices are replaced by codes that hold them exactly, so all that could change is the scaling."""
    path = tiny_bundle / "graphs" / "block1.portable-fp32.onnx"
    exact = onnx.load(path)
    source = StepGraphWeights(path)
    norms = [norm for norm in source.norms if norm.weights[0] in source.linears]
    assert len(norms) == 5, "two norms in each of two layers, and the last one"
    replacements: dict[str, Replacement] = {}
    scales: dict[Norm, NDArray] = {}
    for norm in norms:
        (name,) = norm.weights
        if source.linears[name].inputs % 16 or "proj_out" in name:
            continue
        generator = np.random.default_rng(len(scales))
        codes = generator.integers(-60, 61, source.array(name).shape)
        factors = 2.0 ** generator.integers(-1, 2, source.linears[name].inputs)
        # W = codes / (64 factors) * 2, and W times the factors are multiples of 1/32
        steps = np.full((len(codes), 1), 1 / 32, np.float32)
        matrix = QuantizedMatrix(INT8, codes.astype(np.int8), steps)
        replacements[name], scales[norm] = Replacement(matrix), factors
        held = next(tensor for tensor in exact.graph.initializer if tensor.name == name)
        held.CopyFrom(numpy_helper.from_array((matrix.dequantized() / factors).astype(np.float32), name))
    assert len(scales) == 4
    edited = edit_graph(source, "portable", replacements, scales).embedded()
    outputs = []
    for model in (exact, edited):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        feed = {}
        for value in session.get_inputs():
            shape = [3 if isinstance(size, str) else size for size in value.shape]
            generator = np.random.default_rng(7)
            feed[value.name] = (
                np.zeros(shape, np.int64)
                if value.type == "tensor(int64)"
                else generator.standard_normal(shape).astype(np.float32)
            )
        outputs.append(session.run(None, feed))
    assert all(np.array_equal(*pair) for pair in zip(*outputs, strict=True))
    assert np.abs(outputs[0][0]).max() > 0.1
