"""Every treatment of every matrix of a small graph, against GPTQ and plain rounding called by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from starflow.calibration.weights import candidates as module
from starflow.calibration.weights.candidates import BlockCandidates
from starflow.calibration.weights.gptq import gptq
from starflow.calibration.weights.input_scaling import choose_scales, output_error
from starflow.calibration.weights.ladders import Ladders
from starflow.calibration.weights.layer_inputs import LayerInputs
from starflow.calibration.weights.number_format import INT4, INT8, best_scales, largest_scales, nearest_codes
from starflow.calibration.weights.step_graph_weights import Linear, StepGraphWeights
from starflow.calibration.weights.treatment import (
    CPU_INT4,
    CPU_INT8,
    CPU_INT8_WIDE,
    PORTABLE_INT4,
    PORTABLE_INT8,
    Treatment,
)
from starflow.runtime.bundle.manifest import Lowering

WIDTH = 128
SHAPES = {"w.q": (128, WIDTH), "w.k": (160, WIDTH), "w.out": (192, 96), "w.odd": (2000, 20), "w.small": (8, WIDTH)}


@pytest.fixture
def weights(tmp_path: Path) -> StepGraphWeights:
    """A norm before two products, a product of its own, one of a width no block divides, and one too small."""
    draw = np.random.default_rng(0)
    arrays = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    arrays |= {"norm.scale": np.ones(WIDTH, np.float32), "norm.bias": np.zeros(WIDTH, np.float32)}
    nodes = [helper.make_node("LayerNormalization", ["x", "norm.scale", "norm.bias"], ["n"])]
    values = {"w.q": "n", "w.k": "n", "w.out": "a", "w.odd": "b", "w.small": "x"}
    nodes += [helper.make_node("Gemm", [values[name], name], [f"y.{name}"], transB=1) for name in SHAPES]
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["M", w]) for n, w in (("x", WIDTH), ("a", 96), ("b", 20))
    ]
    outputs = [helper.make_tensor_value_info(f"y.{name}", TensorProto.FLOAT, None) for name in SHAPES]
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    return StepGraphWeights(tmp_path / "g.onnx")


class Recorder:
    """Inputs of known moments: a few are much larger than the others, and they move together."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        draw = np.random.default_rng(1)
        self.inputs: dict[str, LayerInputs] = {}
        for name, (_, width) in SHAPES.items():
            mixing = draw.standard_normal((width, width)) / 4 + np.diag(np.where(np.arange(width) % 16, 1.0, 30.0))
            x = (draw.standard_normal((600, width)) @ mixing).astype(np.float32)
            self.inputs[name] = LayerInputs(x.astype(np.float64).T @ x / len(x), x[::4])
        self.inputs["w.k"] = self.inputs["w.q"]

    def record(self, linears: Sequence[Linear]) -> dict[str, LayerInputs]:
        self.asked.append([linear.weight for linear in linears])
        return {linear.weight: self.inputs[linear.weight] for linear in linears}

    def cache_peaks(self) -> dict[str, np.ndarray]:
        return {"key.0": np.ones((1, 4), np.float32)}


def rounded(weights: StepGraphWeights, ladder: Sequence[Any], lowering: Lowering) -> tuple[Recorder, Any]:
    recorder: Any = Recorder()
    return recorder, BlockCandidates(weights, recorder, Ladders(tuple(ladder)), lowering)


def test_matrices_that_are_large_enough_and_of_the_right_shape(weights: StepGraphWeights) -> None:
    recorder, found = rounded(weights, (CPU_INT8,), "cpu")
    assert recorder.asked == [["w.q", "w.k", "w.out"]]
    assert set(found.calibrated) == set(found.plain) == set(found.output_errors) == {"w.q", "w.k", "w.out"}
    assert found.weights is weights and set(found.cache_peaks) == {"key.0"}
    _, portable = rounded(weights, (PORTABLE_INT8,), "portable")
    assert set(portable.calibrated) == {"w.q", "w.k", "w.out", "w.odd"}, "there all inputs share a scale"
    assert portable.cache_peaks == {}, "caches of engines stay as they are"


@pytest.mark.parametrize("lowering", ["cpu", "portable"])
def test_rounding_is_gptqs_of_the_scaled_matrix(weights: StepGraphWeights, lowering: Lowering) -> None:
    first, dtype = (CPU_INT8, np.float32) if lowering == "cpu" else (PORTABLE_INT8, np.float16)
    recorder, found = rounded(weights, (first,), lowering)
    both = [weights.array(name).astype(np.float32) for name in ("w.q", "w.k")]
    factors = choose_scales(both, recorder.inputs["w.q"], INT8, 128, rounded_inputs=lowering == "cpu")
    assert (factors != 1).any() and next(iter(found.scales.values())).tolist() == factors.tolist()
    assert len(found.scales) == 1
    for name, own in (("w.q", factors), ("w.k", factors), ("w.out", np.ones(96))):
        matrix, inputs = weights.array(name), recorder.inputs[name]
        block = first.block(matrix.shape[1])
        assert block is not None
        scaled, hessian = (matrix * own).astype(np.float32), inputs.hessian / np.outer(own, own)
        steps = best_scales(scaled, INT8, block, np.dtype(dtype), np.diagonal(hessian))
        expected = gptq(scaled, hessian, steps, INT8)
        replacement = found.calibrated[name]["int8"]
        assert np.array_equal(replacement.matrix.codes, expected.codes) and not replacement.wide
        assert np.array_equal(replacement.matrix.scales, expected.scales)
        plain = nearest_codes(matrix, largest_scales(matrix, INT8, block, np.dtype(dtype)), INT8)
        assert np.array_equal(found.plain[name].matrix.codes, plain.codes)
        assert np.array_equal(found.plain[name].matrix.scales, plain.scales) and plain.scales.dtype == dtype
        assert found.output_errors[name] == pytest.approx(
            (
                output_error(matrix, plain.dequantized(), inputs),
                output_error(matrix, expected.dequantized() / own, inputs),
            )
        )
        assert found.output_errors[name][1] < found.output_errors[name][0]


def test_every_treatment_of_a_ladder(weights: StepGraphWeights) -> None:
    _, found = rounded(weights, (CPU_INT4, CPU_INT8, CPU_INT8_WIDE), "cpu")
    for kinds in found.calibrated.values():
        assert list(kinds) == ["int4", "int8", "int8-wide"]
        assert [kinds[name].matrix.format.name for name in kinds] == ["int4", "int8", "int8"]
        assert kinds["int8"].matrix is kinds["int8-wide"].matrix, "they differ in activations alone"
        assert [kinds[name].wide for name in kinds] == [False, False, True]
    assert {name: kinds["int4"].matrix.block for name, kinds in found.calibrated.items()} == dict.fromkeys(
        found.calibrated, 32
    )
    assert found.calibrated["w.out"]["int8"].matrix.block == 32 and found.calibrated["w.q"]["int8"].matrix.block == 128
    assert all(each.matrix.format.name == "int4" for each in found.plain.values()), "the smallest treatment"


@pytest.mark.parametrize("stretch", [0.01, 1.0])
def test_norms_are_scaled_for_the_first_treatment_or_not_at_all(weights: StepGraphWeights, stretch: float) -> None:
    """Where one input is smaller than the others its factor is below 1; where all are alike, no norm is touched."""
    recorder: Any = Recorder()
    x = np.random.default_rng(1).standard_normal((150, WIDTH)).astype(np.float32)
    x[:, 3] *= stretch
    inputs = LayerInputs(x.astype(np.float64).T @ x / len(x), x)
    recorder.inputs |= {"w.q": inputs, "w.k": inputs}
    found = BlockCandidates(weights, recorder, Ladders((CPU_INT4, CPU_INT8)), "cpu")
    both = [weights.array(name) for name in ("w.q", "w.k")]
    factors = choose_scales(both, inputs, INT4, 32, rounded_inputs=True)
    assert [each.tolist() for each in found.scales.values()] == ([] if (factors == 1).all() else [factors.tolist()])
    assert (factors[3] < 1) == (stretch < 1) and (np.delete(factors, 3) == 1).all()


def test_a_treatment_whose_blocks_do_not_divide_the_inputs(weights: StepGraphWeights) -> None:
    """The first one decides which matrices are rounded at all; a later one is left out alone."""
    between = Treatment("between", INT8, (128,))
    _, found = rounded(weights, (PORTABLE_INT4, between, PORTABLE_INT8), "portable")
    kinds = {name: list(kinds) for name, kinds in found.calibrated.items()}
    assert kinds == {"w.q": ["int4", "between", "int8"], "w.k": ["int4", "between", "int8"], "w.out": ["int4", "int8"]}


def test_moments_are_recorded_in_groups_that_fit_into_memory(
    weights: StepGraphWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room, groups in (
        (8 * (128**2 + 96**2), [["w.q", "w.k", "w.out"]]),
        (8 * (128**2 + 96**2) - 1, [["w.q", "w.k"], ["w.out"]]),
        (1, [["w.q", "w.k"], ["w.out"]]),
    ):
        monkeypatch.setattr(module, "HESSIAN_BYTES", room)
        assert rounded(weights, (CPU_INT8,), "cpu")[0].asked == groups, "matrices behind one norm stay together"
