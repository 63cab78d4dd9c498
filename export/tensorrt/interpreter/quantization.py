"""Layers that turn codes into numbers."""

import numpy as np
from numpy.typing import NDArray

from starflow.export.tensorrt.interpreter.kernel import Compute, Kernel
from starflow.export.tensorrt.interpreter.layers import NetworkLayer


def dequantize(layer: NetworkLayer) -> Compute:
    """Dequantize: codes times a scale, which is one number, one for each index along an axis, or one for each block.

    Blocks show in the shapes: where the scale has fewer entries along a dimension than the codes, each is for as many codes.
    """
    codes, scale = layer.tensor(0), layer.tensor(1)
    if layer.has(2):
        layer.refuse("a zero point")
    axis = layer.attributes.axis
    blocks = len(scale.shape) == len(codes.shape) and len(codes.shape) > 1
    if not blocks and scale.shape not in ((), (1,)) and scale.shape != (codes.shape[axis],):
        layer.refuse(f"a scale of shape {list(scale.shape)} for codes of shape {list(codes.shape)}")

    def to_numbers(x: NDArray, step: NDArray) -> NDArray:
        if blocks:
            for dimension, (size, count) in enumerate(zip(x.shape, step.shape, strict=True)):
                step = np.repeat(step, size // count, axis=dimension)
        elif step.size > 1:
            step = step.reshape([-1 if dimension == axis else 1 for dimension in range(x.ndim)])
        return x.astype(np.float32) * step

    return to_numbers


KERNELS: dict[str, Kernel] = {"DEQUANTIZE": dequantize}
