"""Activation-aware scaling: x' = x / c and W' = W c before W is rounded, c one factor for each input.

An input that is large against its neighbours sets the step that 8-bit activations are rounded with; one that matters little
deserves no more of a block's codes than it needs. c = (rms of the input)^a / (rms of its column)^(1-a) lies between the
two (AWQ, Lin et al., 2023; SmoothQuant, Xiao et al., 2022). The factors are powers of two, so that a norm takes them in without
changing the function by a bit.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from starflow.calibration.weights.layer_inputs import LayerInputs
from starflow.calibration.weights.number_format import WeightFormat, largest_scales, nearest_codes

EXPONENTS = (0.25, 0.5, 0.75)
RANGE = 16.0  # the largest factor, and one over the smallest


def choose_scales(
    weights: Sequence[NDArray], inputs: LayerInputs, target: WeightFormat, block: int, *, rounded_inputs: bool
) -> NDArray:
    """[in] powers of two, the same for all matrices that take these inputs: those with the least error after plain rounding.

    Args:
        weights: Matrices [out, in].
        block: Inputs that share a scale.
        rounded_inputs: Whether inputs are rounded to 8 bits as well, by blocks of the same size.
    """
    size = weights[0].shape[1]
    x = inputs.vectors
    spread = _floored(np.sqrt(np.diagonal(inputs.hessian)))
    columns = _floored(np.sqrt(sum(np.square(matrix, dtype=np.float64).sum(axis=0) for matrix in weights)))
    candidates = [np.ones(size)]
    candidates += [_powers_of_two(spread**a / columns ** (1 - a)) for a in EXPONENTS]

    def error(scales: NDArray) -> float:
        total = 0.0
        for matrix in weights:
            scaled = (matrix * scales).astype(np.float32)
            found = nearest_codes(scaled, largest_scales(scaled, target, block, np.dtype(np.float32)), target)
            given = (x / scales).astype(np.float32)
            given = rounded_to_8_bits(given, block) if rounded_inputs else given
            exact = x @ matrix.T.astype(np.float32)
            total += float(np.square(given @ found.dequantized().T - exact).sum() / np.square(exact).sum())
        return total

    return min(candidates, key=error)


def rounded_to_8_bits(x: NDArray, block: int) -> NDArray:
    """x as MatMulNBits takes it at accuracy level 4: one step for each row and block."""
    parts = x.reshape(len(x), -1, block)
    steps = np.maximum(np.abs(parts).max(axis=2, keepdims=True) / 127, np.finfo(np.float32).tiny)
    return (np.rint(parts / steps) * steps).reshape(x.shape)


def output_error(weights: NDArray, replaced: NDArray, inputs: LayerInputs) -> float:
    """Relative error of a product's outputs when its matrix is replaced, |x (W - Ŵ)ᵀ| / |x Wᵀ| over all inputs seen."""
    difference = weights.astype(np.float64) - replaced
    above = np.einsum("oi,ij,oj->", difference, inputs.hessian, difference, optimize=True)
    below = np.einsum("oi,ij,oj->", weights, inputs.hessian, weights, optimize=True)
    return float(np.sqrt(max(above, 0.0) / below)) if below > 0 else 0.0


def _floored(values: NDArray) -> NDArray:
    """An input that is never used must not get an infinite factor."""
    return np.maximum(values, 1e-3 * values.mean() + np.finfo(np.float64).tiny)


def _powers_of_two(scales: NDArray) -> NDArray:
    centred = scales / np.exp(np.log(scales).mean())
    return np.exp2(np.rint(np.log2(np.clip(centred, 1 / RANGE, RANGE))))
