"""Layers that compute every element by itself: elementwise, unary, activation, cast, select, fill, dequantize."""

from collections.abc import Mapping
from functools import partial
from math import pi

import numpy as np
from numpy.typing import NDArray

from starflow.export.tensorrt.interpreter.layers import Compute, Kernel, NetworkLayer
from starflow.export.tensorrt.interpreter.number_types import working_dtype

# erf as a quotient of polynomials, odd powers of x over even ones, highest first; float32 cannot tell erf(4) from 1.
_ERF_ABOVE = np.array(
    [-2.72614226e-10, 2.77068142e-8, -2.10102402e-6, -5.69250639e-5, -7.34990631e-4, -2.95459981e-3, -1.60960333e-2],
    np.float32,
)
_ERF_BELOW = np.array([-1.45660718e-5, -2.13374055e-4, -1.68282697e-3, -7.37332917e-3, -1.42647391e-2], np.float32)


def erf(x: NDArray) -> NDArray:
    """The error function of a float32 array."""
    x = np.clip(x, np.float32(-4), np.float32(4))
    square = x * x
    return x * np.polyval(_ERF_ABOVE, square) / np.polyval(_ERF_BELOW, square)


def _divide(a: NDArray, b: NDArray) -> NDArray:
    """True division of floats; of integers, rounded towards zero."""
    if a.dtype.kind == "f":
        return a / b
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


_ELEMENTWISE: dict[str, Compute] = {
    "SUM": np.add,
    "PROD": np.multiply,
    "MAX": np.maximum,
    "MIN": np.minimum,
    "SUB": np.subtract,
    "DIV": _divide,
    "POW": np.power,
    "FLOOR_DIV": np.floor_divide,
    "AND": np.logical_and,
    "OR": np.logical_or,
    "XOR": np.logical_xor,
    "EQUAL": np.equal,
    "GREATER": np.greater,
    "LESS": np.less,
}

_UNARY: dict[str, Compute] = {
    "EXP": np.exp,
    "LOG": np.log,
    "SQRT": np.sqrt,
    "RECIP": np.reciprocal,
    "ABS": np.abs,
    "NEG": np.negative,
    "SIN": np.sin,
    "COS": np.cos,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "ERF": erf,
    "NOT": np.logical_not,
    "SIGN": np.sign,
    "ROUND": np.rint,
    "ISINF": np.isinf,
    "ISNAN": np.isnan,
}


def operation_of(table: Mapping[str, Compute], layer: NetworkLayer) -> Compute:
    """What a table has for the layer's `op`."""
    return table.get(layer.choice("op")) or layer.refuse(f"operation {layer.choice('op')}")


def activation(layer: NetworkLayer) -> Compute:
    """Activation: a function of each element, some with parameters alpha and beta."""
    kind, alpha, beta = layer.choice("type"), layer.attributes.alpha, layer.attributes.beta
    functions: dict[str, Compute] = {
        "RELU": lambda x: np.maximum(x, 0),
        "SIGMOID": lambda x: 1 / (1 + np.exp(-x)),
        "TANH": np.tanh,
        "LEAKY_RELU": lambda x: np.where(x >= 0, x, alpha * x),
        "ELU": lambda x: np.where(x >= 0, x, alpha * np.expm1(x)),
        "SOFTPLUS": lambda x: alpha * np.logaddexp(beta * x, 0),
        "CLIP": lambda x: np.clip(x, alpha, beta),
        "HARD_SIGMOID": lambda x: np.clip(alpha * x + beta, 0, 1),
        "GELU_ERF": lambda x: 0.5 * x * (1 + erf(x * np.float32(0.5**0.5))),
        "GELU_TANH": lambda x: 0.5 * x * (1 + np.tanh((2 / pi) ** 0.5 * (x + 0.044715 * x * x * x))),
    }
    return functions.get(kind) or layer.refuse(f"activation {kind}")


def cast(layer: NetworkLayer) -> Compute:
    """Cast, Identity: conversion to the output's type; floating point to integer rounds towards zero."""
    dtype = working_dtype(layer.output.dtype)
    return lambda x: x.astype(dtype, copy=False)


def fill(layer: NetworkLayer) -> Compute:
    """Fill, LINSPACE: element [i, j, ...] is alpha + beta[0] i + beta[1] j + ...; sizes, alpha and beta may be inputs."""
    operation, attributes = layer.choice("operation"), layer.attributes
    if operation != "LINSPACE":
        layer.refuse(f"operation {operation}, which is not deterministic")
    sizes, start, step = attributes.shape, attributes.alpha, attributes.beta
    dtype = working_dtype(layer.output.dtype)

    def line(shape: NDArray | None = None, alpha: NDArray | None = None, beta: NDArray | None = None) -> NDArray:
        dimensions = tuple(sizes) if shape is None else tuple(int(size) for size in shape)
        steps = np.atleast_1d(step if beta is None else beta)
        value = np.full(dimensions, start if alpha is None else alpha, dtype)
        for axis, index in enumerate(np.indices(dimensions, dtype, sparse=True)):
            value = value + index * steps[axis].astype(dtype)
        return value

    return line


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


KERNELS: dict[str, Kernel] = {
    "ELEMENTWISE": partial(operation_of, _ELEMENTWISE),  # dimensions of size 1 are broadcast
    "UNARY": partial(operation_of, _UNARY),  # ROUND takes halves to even
    "ACTIVATION": activation,
    "CAST": cast,
    "IDENTITY": cast,
    "SELECT": lambda layer: np.where,  # elements of input 1 where the condition holds, else of input 2
    "FILL": fill,
    "DEQUANTIZE": dequantize,
}
