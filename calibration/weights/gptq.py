"""Rounding that makes up for its own errors: GPTQ (Frantar et al., 2023, algorithm 1).

The output error of a layer with inputs x is E |(W - Ŵ) x|² = tr((W - Ŵ) H (W - Ŵ)ᵀ), H = E x xᵀ. Columns are rounded one after
the other; what rounding one of them did to the output is taken back, as well as it can be, by the columns not yet rounded.
With U the upper Cholesky factor of H⁻¹ (H⁻¹ = Uᵀ U), rounding column i by e moves column j > i by -e U_ij / U_ii.
"""

import numpy as np
from numpy.typing import NDArray

from starflow.calibration.weights.number_format import QuantizedMatrix, WeightFormat, quantized

DAMPING = 1e-3  # of the mean diagonal: inputs that calibration never moved must not count as free
PANEL = 128  # columns whose effect on all later ones is applied at once


def gptq(weights: NDArray, hessian: NDArray, scales: NDArray, target: WeightFormat) -> QuantizedMatrix:
    """Round a matrix under given scales.

    Args:
        weights: [out, in].
        hessian: [in, in] float64, the mean of x xᵀ over the inputs.
        scales: [out, blocks].
    """
    # The inputs that matter most come first, while there are many others left to make up for them.
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    remaining = weights.astype(np.float64)[:, order]
    steps = np.repeat(scales.astype(np.float64), weights.shape[1] // scales.shape[1], axis=1)[:, order]
    factor = _inverse_factor(hessian[np.ix_(order, order)])
    codes = np.empty_like(remaining)
    columns = weights.shape[1]
    for start in range(0, columns, PANEL):
        end = min(start + PANEL, columns)
        errors = np.empty((len(weights), end - start))
        for column in range(start, end):
            code = target.nearest(remaining[:, column] / steps[:, column])
            codes[:, column] = code
            error = (remaining[:, column] - code * steps[:, column]) / factor[column, column]
            remaining[:, column + 1 : end] -= np.outer(error, factor[column, column + 1 : end])
            errors[:, column - start] = error
        remaining[:, end:] -= errors @ factor[start:end, end:]
    return quantized(codes[:, np.argsort(order)], scales, target)


def _inverse_factor(hessian: NDArray) -> NDArray:
    """The upper triangular U with Uᵀ U = H⁻¹, from H with its diagonal raised a little."""
    size = len(hessian)
    mean = np.trace(hessian) / size
    damped = hessian + np.eye(size) * (DAMPING * mean if mean > 0 else 1.0)
    # H = L Lᵀ with rows and columns reversed gives an upper triangular R with H = R Rᵀ, hence U = R⁻¹.
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    upper = lower[::-1, ::-1]
    return np.linalg.solve(upper, np.eye(size))
