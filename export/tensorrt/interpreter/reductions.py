"""Layers that add up: matrix multiply, reduce, softmax, normalisation. All of it in float32."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from starflow.export.tensorrt.interpreter.layers import Compute, Kernel, NetworkLayer, axes_of

_REDUCE: dict[str, Callable[..., NDArray]] = {
    "SUM": np.sum,
    "PROD": np.prod,
    "MAX": np.max,
    "MIN": np.min,
    "AVG": np.mean,
}


def matrix_multiply(layer: NetworkLayer) -> Compute:
    """MatrixMultiply: collections of matrices or vectors, dimensions of size 1 broadcast."""
    ops = layer.choice("op0"), layer.choice("op1")
    if not set(ops) <= {"NONE", "TRANSPOSE", "VECTOR"}:
        layer.refuse(f"operations {ops}")
    left, right = ops

    def multiply(a: NDArray, b: NDArray) -> NDArray:
        a = a.swapaxes(-1, -2) if left == "TRANSPOSE" else a[..., None, :] if left == "VECTOR" else a
        b = b.swapaxes(-1, -2) if right == "TRANSPOSE" else b[..., None] if right == "VECTOR" else b
        product = np.matmul(a, b)
        product = product[..., 0] if right == "VECTOR" else product
        return product if left != "VECTOR" else product[..., 0, :] if right != "VECTOR" else product[..., 0]

    return multiply


def reduce(layer: NetworkLayer) -> Compute:
    """Reduce: over the axes of a bit mask."""
    operation, axes, keep = layer.choice("op"), axes_of(layer.attributes.axes), layer.attributes.keep_dims
    function = _REDUCE.get(operation) or layer.refuse(f"operation {operation}")
    dtype = layer.output.dtype
    if operation == "AVG" and dtype.startswith("INT"):
        layer.refuse(f"average of {dtype}")

    def collapse(x: NDArray) -> NDArray:
        return np.asarray(function(x, axes, keepdims=keep), x.dtype)

    return collapse


def softmax_over(x: NDArray, axis: int) -> NDArray:
    """exp(x - max) / sum(exp(x - max)) along an axis."""
    x = np.exp(x - x.max(axis, keepdims=True))
    x /= x.sum(axis, keepdims=True)
    return x


def softmax(layer: NetworkLayer) -> Compute:
    """SoftMax: along the axis of a bit mask."""
    axes = axes_of(layer.attributes.axes)
    if len(axes) != 1:
        layer.refuse(f"axes {axes}")
    return lambda x: softmax_over(x, axes[0])


def normalization(layer: NetworkLayer) -> Compute:
    """Normalization: (x - mean) / sqrt(variance + epsilon) * scale + bias, moments over the axes of a bit mask."""
    attributes = layer.attributes
    if attributes.num_groups != 1:
        layer.refuse(f"{attributes.num_groups} groups")
    axes, epsilon = axes_of(attributes.axes), np.float32(attributes.epsilon)

    def normalise(x: NDArray, scale: NDArray, bias: NDArray) -> NDArray:
        centred = x - x.mean(axes, keepdims=True)
        variance = np.square(centred).mean(axes, keepdims=True)
        return centred / np.sqrt(variance + epsilon) * scale + bias

    return normalise


KERNELS: dict[str, Kernel] = {
    "MATRIX_MULTIPLY": matrix_multiply,
    "REDUCE": reduce,
    "SOFTMAX": softmax,
    "NORMALIZATION": normalization,
}
