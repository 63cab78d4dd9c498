"""Rounding that makes up for its own errors."""

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.calibration.weights import gptq as gptq_module
from starflow.calibration.weights.gptq import gptq
from starflow.calibration.weights.number_format import (
    FP8,
    INT4,
    INT8,
    WeightFormat,
    best_scales,
    largest_scales,
    nearest_codes,
)

FLOAT32 = np.dtype(np.float32)


def correlated(inputs: int, rank: int = 12, count: int = 4000) -> NDArray:
    """Inputs most of whose variance lies in a few directions, as activations have it."""
    generator = np.random.default_rng(0)
    return generator.standard_normal((count, rank)) @ generator.standard_normal(
        (rank, inputs)
    ) + 0.1 * generator.standard_normal((count, inputs))


def output_error(weights: NDArray, found: NDArray, x: NDArray) -> float:
    return float(np.linalg.norm(x @ (found - weights).T) / np.linalg.norm(x @ weights.T))


@pytest.mark.parametrize("target", [INT8, INT4, FP8])
@pytest.mark.parametrize("inputs", [64, 192])  # less and more than a panel
def test_beats_plain_rounding_on_inputs_it_has_not_seen(target: WeightFormat, inputs: int) -> None:
    x = correlated(inputs)
    seen, unseen = np.split(x, 2)
    weights = np.random.default_rng(1).standard_normal((48, inputs)).astype(np.float32)
    hessian = seen.T @ seen / len(seen)
    scales = best_scales(weights, target, 32, FLOAT32, np.diagonal(hessian))
    plain = nearest_codes(weights, largest_scales(weights, target, 32, FLOAT32), target)
    found = gptq(weights, hessian, scales, target)
    assert output_error(weights, found.dequantized(), unseen) < 0.4 * output_error(weights, plain.dequantized(), unseen)
    assert np.abs(found.codes.astype(np.float64)).max() <= max(-target.lowest, target.highest)


def test_without_correlation_it_is_plain_rounding() -> None:
    weights = np.random.default_rng(2).standard_normal((16, 64)).astype(np.float32)
    scales = largest_scales(weights, INT8, 16, FLOAT32)
    found = gptq(weights, np.diag(np.arange(1.0, 65.0)), scales, INT8)
    assert np.array_equal(found.codes, nearest_codes(weights, scales, INT8).codes)


def test_each_column_is_the_least_squares_answer_to_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last column's target is what least squares fits to the output that the rounded ones leave over."""
    monkeypatch.setattr(gptq_module, "DAMPING", 0.0)
    x = correlated(6, rank=3, count=500) * np.array([6, 5, 4, 3, 2, 1])  # so columns are rounded from left to right
    order = np.argsort(-np.square(x).sum(axis=0))
    weights = np.random.default_rng(3).standard_normal((40, 6)).astype(np.float32)
    scales = largest_scales(weights, INT4, 6, FLOAT32)
    found = gptq(weights, x.T @ x / len(x), scales, INT4)
    last, before = order[-1], order[:-1]
    left = x @ weights.T - x[:, before] @ found.dequantized()[:, before].T
    target = np.linalg.lstsq(x[:, [last]], left, rcond=None)[0][0] / scales[:, 0]
    assert np.abs(target - weights[:, last] / scales[:, 0]).max() > 1, "it was moved"
    inside = np.abs(target) < 7
    assert np.abs(found.codes[inside, last] - target[inside]).max() <= 0.5 + 1e-6


def test_inputs_that_never_moved_and_blocks_of_zeros() -> None:
    x = correlated(64)
    x[:, 5] = 0
    weights = np.random.default_rng(4).standard_normal((8, 64)).astype(np.float32)
    weights[:, 32:] = 0
    hessian = x.T @ x / len(x)
    for dtype in (np.dtype(np.float16), FLOAT32):
        for h in (hessian, np.zeros_like(hessian)):
            scales = best_scales(weights, INT8, 32, dtype, np.diagonal(h))
            found = gptq(weights, h, scales, INT8).dequantized()
            assert np.isfinite(found).all()
            assert np.abs(found[:, 5] - weights[:, 5]).max() < 0.1
            assert (nearest_codes(weights, scales, INT8).dequantized()[:, 32:] == 0).all()
    assert output_error(weights, gptq(weights, hessian, scales, INT8).dequantized(), x) < 0.01


def test_best_scales_clip_where_that_pays() -> None:
    weights = np.random.default_rng(5).standard_normal((32, 128)).astype(np.float32)
    importance = np.ones(128)

    def error(scales: NDArray) -> float:
        return float(np.linalg.norm(nearest_codes(weights, scales, INT4).dequantized() - weights))

    widest, best = (
        largest_scales(weights, INT4, 128, FLOAT32),
        best_scales(weights, INT4, 128, FLOAT32, importance),
    )
    assert (best <= widest).all() and error(best) < 0.97 * error(widest)
