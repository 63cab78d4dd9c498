"""Codes and scales, against trying every code and against exact values."""

import ml_dtypes
import numpy as np
import pytest
from onnx import AttributeProto, helper

from starflow.calibration.weights.number_format import (
    FP8,
    INT4,
    INT8,
    SHRINK,
    UNSEEN,
    QuantizedMatrix,
    WeightFormat,
    best_scales,
    largest_scales,
    nearest_codes,
    quantized,
)

FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)


def all_codes(target: WeightFormat) -> np.ndarray:
    if target.name == "fp8":
        every = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
        return np.unique(every[np.isfinite(every)])
    return np.arange({"int8": -127, "int4": -8}[target.name], {"int8": 128, "int4": 8}[target.name], dtype=np.float64)


@pytest.mark.parametrize("target", [INT8, INT4, FP8], ids=lambda target: target.name)
def test_the_nearest_code_is_the_nearest_of_all(target: WeightFormat) -> None:
    codes = all_codes(target)
    values = np.random.default_rng(0).uniform(1.2 * codes[0], 1.2 * codes[-1], 3000)
    found = target.nearest(values)
    assert found.dtype == values.dtype and set(found) <= set(codes)
    np.testing.assert_allclose(np.abs(found - values), np.abs(codes[:, None] - values).min(axis=0), rtol=1e-6)
    assert target.nearest(np.array([1e9, -1e9])).tolist() == [codes[-1], codes[0]]
    assert target.bits == (4 if target is INT4 else 8)


@pytest.mark.parametrize("target", [INT8, INT4, FP8], ids=lambda target: target.name)
@pytest.mark.parametrize("block", [2, 3, 6])
def test_the_largest_value_of_a_block_becomes_the_largest_code(target: WeightFormat, block: int) -> None:
    weights = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    scales = largest_scales(weights, target, block, FLOAT32)
    assert scales.shape == (4, 6 // block) and scales.dtype == np.float32
    for row in range(4):
        for index in range(6 // block):
            part = weights[row, index * block : (index + 1) * block]
            assert scales[row, index] == pytest.approx(np.abs(part).max() / target.highest)


def test_plain_rounding_by_hand() -> None:
    weights = np.array([[1.0, -0.4, 0.26, 8.0], [0.0, 0.0, -7.0, 3.4]], np.float32)
    found = nearest_codes(weights, np.array([[0.5, 2.0], [1.0, 1.0]], np.float32), INT4)
    assert found.codes.tolist() == [[2, -1, 0, 4], [0, 0, -7, 3]] and found.codes.dtype == np.int8
    assert found.dequantized().tolist() == [[1.0, -0.5, 0.0, 8.0], [0.0, 0.0, -7.0, 3.0]]
    assert (found.block, found.bytes) == (2, 8 // 2 + 4 * 4)
    assert found.dequantized().dtype == np.float32


@pytest.mark.parametrize("target", [INT8, INT4, FP8], ids=lambda target: target.name)
def test_plain_rounding_finds_the_nearest_multiple_of_each_blocks_scale(target: WeightFormat) -> None:
    weights = np.random.default_rng(6).standard_normal((5, 12)).astype(np.float32)
    scales = np.random.default_rng(7).uniform(0.01, 0.2, (5, 3)).astype(np.float32)
    found = nearest_codes(weights, scales, target).dequantized()
    for row, column in np.ndindex(weights.shape):
        every = all_codes(target) * scales[row, column // 4]
        nearest = np.abs(every - weights[row, column]).min()
        assert abs(found[row, column] - weights[row, column]) == pytest.approx(nearest, abs=1e-6)


def test_sizes_of_matrices() -> None:
    codes = np.zeros((6, 10))
    for target, stored in ((INT8, 60), (FP8, 60), (INT4, 30)):
        matrix = quantized(codes, np.ones((6, 2), np.float16), target)
        assert isinstance(matrix, QuantizedMatrix)
        assert matrix.bytes == stored + 6 * 2 * 2 and matrix.block == 5 and matrix.format is target
        assert helper.make_attribute("block_size", matrix.block).type == AttributeProto.INT
        assert matrix.codes.dtype == (ml_dtypes.float8_e4m3fn if target is FP8 else np.int8)


@pytest.mark.parametrize("target", [INT8, INT4, FP8], ids=lambda target: target.name)
def test_best_scales_are_the_best_of_those_tried(target: WeightFormat) -> None:
    """Every scale of the ladder, weighed by hand for each block."""
    draw = np.random.default_rng(2)
    weights = draw.standard_t(3, (5, 12)).astype(np.float32)
    importance = draw.uniform(0, 4, 12) ** 2
    found = best_scales(weights, target, 4, FLOAT32, importance)
    widest = largest_scales(weights, target, 4, FLOAT32)
    weighting = importance + UNSEEN * importance.mean()
    for row in range(5):
        for index in range(3):
            part, weight = weights[row, 4 * index : 4 * index + 4], weighting[4 * index : 4 * index + 4]
            scales = [np.float32(widest[row, index] * shrink) for shrink in SHRINK]
            errors = [float((weight * (target.nearest(part / s) * s - part) ** 2).sum()) for s in scales]
            assert found[row, index] == pytest.approx(scales[int(np.argmin(errors))])
    assert SHRINK[0] == 1.0 and len(SHRINK) == 13 and SHRINK[-1] == pytest.approx(0.7)


def test_inputs_that_never_moved_still_count_a_little() -> None:
    """All importance lies on the small value; the large one is clipped no further than a hundredth of that allows."""
    weights = np.array([[1.0, 0.52]], np.float32)
    seen, unseen = (best_scales(weights, INT4, 2, FLOAT32, np.array([i, 1.0])) for i in (1.0, 0.0))
    assert unseen[0, 0] < seen[0, 0] <= 1 / 7


def test_inputs_that_never_moved_are_neither_free_nor_dear() -> None:
    """Their values are kept better than if they did not count, at nearly no cost for those that moved."""
    weights = np.random.default_rng(8).standard_normal((300, 4)).astype(np.float32)
    widest = largest_scales(weights, INT4, 4, FLOAT32)

    def errors(scales: np.ndarray) -> np.ndarray:
        """By row, of the inputs that never moved and of those that did."""
        difference = np.square(nearest_codes(weights, scales, INT4).dequantized() - weights)
        return np.stack([difference[:, :2].sum(axis=1), difference[:, 2:].sum(axis=1)])

    tried = np.stack([errors(widest * np.float32(shrink)) for shrink in SHRINK])
    unheeded = np.take_along_axis(tried, tried[:, 1].argmin(axis=0)[None, None], axis=0)[0].sum(axis=1)
    found = errors(best_scales(weights, INT4, 4, FLOAT32, np.array([0.0, 0.0, 1.0, 1.0]))).sum(axis=1)
    assert found[0] < 0.9 * unheeded[0]
    assert unheeded[1] <= found[1] < 1.02 * unheeded[1]


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_the_unit_of_inputs_does_not_matter_to_scales(unit: float) -> None:
    """An input that calibration never moved counts relative to the others, in whatever unit they are."""
    weights = np.random.default_rng(5).standard_normal((60, 4)).astype(np.float32)
    importance = np.array([0.0, 0.0, 3.0, 5.0])
    found = best_scales(weights, INT4, 4, FLOAT32, unit * importance)
    assert np.array_equal(found, best_scales(weights, INT4, 4, FLOAT32, importance))


def test_blocks_of_zeros_and_scales_too_small_for_their_type() -> None:
    weights = np.array([[0.0, 0.0, 1e-9, 0.0]], np.float32)
    scales = largest_scales(weights, INT8, 2, FLOAT16)
    assert scales.tolist() == [[1.0, float(np.finfo(np.float16).smallest_subnormal)]]
    assert largest_scales(weights, INT8, 2, FLOAT32)[0, 1] == pytest.approx(1e-9 / 127)
    assert nearest_codes(weights, scales, INT8).codes.tolist() == [[0, 0, 0, 0]]
    assert scales.dtype == np.float16
    assert best_scales(weights, INT8, 2, FLOAT16, np.ones(4))[0, 0] == 1.0, "of scales that do equally well, the widest"
