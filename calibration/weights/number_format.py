"""What a weight matrix becomes: small codes and, for each block of its inputs, one scale.

A matrix W [out, in] is stored as codes c and scales s, w = s c. Scales are symmetric: no operator that runs these weights
needs a zero point, and a model's weights lie around zero.
"""

from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

FormatName = Literal["int8", "int4", "fp8"]

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
UNSEEN = 1e-2  # of the mean importance: what an input counts that calibration never moved
SHRINK = np.linspace(1.0, 0.7, 13)  # scales that are tried, relative to the one that clips nothing


@dataclass(frozen=True)
class WeightFormat:
    """A type of codes."""

    name: FormatName  # `int8`, `int4` (two's complement) or `fp8` (E4M3)
    bits: int
    lowest: float
    highest: float
    dtype: np.dtype  # of codes in an array

    def nearest(self, values: NDArray) -> NDArray:
        """The codes nearest to `values`, in the type of `values`."""
        clipped = np.clip(values, self.lowest, self.highest)
        return clipped.astype(self.dtype).astype(values.dtype) if self.name == "fp8" else np.rint(clipped)


INT8 = WeightFormat("int8", 8, -127, 127, np.dtype(np.int8))
INT4 = WeightFormat("int4", 4, -8, 7, np.dtype(np.int8))
FP8 = WeightFormat("fp8", 8, float(ml_dtypes.finfo(FLOAT8).min), float(ml_dtypes.finfo(FLOAT8).max), FLOAT8)


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix in codes."""

    format: WeightFormat
    codes: NDArray  # [out, in], in the format's type
    scales: NDArray  # [out, blocks] in the type they are stored in; a block is in / blocks inputs

    @property
    def block(self) -> int:
        """Inputs that share a scale."""
        return self.codes.shape[1] // self.scales.shape[1]

    @property
    def bytes(self) -> int:
        """Of codes and scales."""
        return self.codes.size * self.format.bits // 8 + self.scales.nbytes

    def dequantized(self) -> NDArray[np.float32]:
        """s c, [out, in] float32."""
        return self.codes.astype(np.float32) * np.repeat(self.scales.astype(np.float32), self.block, axis=1)


def quantized(codes: NDArray, scales: NDArray, target: WeightFormat) -> QuantizedMatrix:
    """A matrix from codes of any number type."""
    return QuantizedMatrix(target, codes.astype(target.dtype), scales)


def largest_scales(weights: NDArray, target: WeightFormat, block: int, dtype: np.dtype) -> NDArray:
    """[out, blocks] scales under which the largest value of each block is the largest code."""
    peaks = np.abs(_blocks(weights, block)).max(axis=2)
    return _storable(peaks / target.highest, dtype)


def best_scales(weights: NDArray, target: WeightFormat, block: int, dtype: np.dtype, importance: NDArray) -> NDArray:
    """[out, blocks] scales with the least squared error when every code is the nearest one.

    Args:
        weights: [out, in].
        block: Inputs that share a scale.
        dtype: Type the scales are stored in.
        importance: [in] weight of an input's squared error: its mean square.
    """
    weighting = (importance + UNSEEN * importance.mean()).reshape(-1, block)
    parts = _blocks(weights, block)
    widest = largest_scales(weights, target, block, dtype)
    best, least = widest, np.full(widest.shape, np.inf)
    for shrink in SHRINK:
        scales = _storable(widest * shrink, dtype)
        steps = scales.astype(np.float32)[:, :, None]
        error = np.einsum("obi,bi->ob", np.square(target.nearest(parts / steps) * steps - parts), weighting)
        best, least = np.where(error < least, scales, best), np.minimum(error, least)
    return best


def nearest_codes(weights: NDArray, scales: NDArray, target: WeightFormat) -> QuantizedMatrix:
    """Plain rounding: every weight becomes the nearest code."""
    steps = np.repeat(scales.astype(np.float32), weights.shape[1] // scales.shape[1], axis=1)
    return quantized(target.nearest(weights / steps), scales, target)


def _blocks(weights: NDArray, block: int) -> NDArray:
    return weights.reshape(len(weights), -1, block)


def _storable(scales: NDArray, dtype: np.dtype) -> NDArray:
    """Scales in their own type. A block of zeros takes 1, one too small for the type the type's smallest number."""
    smallest = np.finfo(dtype).smallest_subnormal
    return np.where(scales == 0, dtype.type(1), np.maximum(scales.astype(dtype), smallest))
