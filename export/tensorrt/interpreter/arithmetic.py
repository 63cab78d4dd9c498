"""Layers that compute every element by itself: elementwise, unary, activation, cast, select, fill."""

from collections.abc import Callable
from math import pi

import numpy as np
from numpy.typing import NDArray

from starflow.export.tensorrt.interpreter.kernel import Compute, Kernel
from starflow.export.tensorrt.interpreter.layers import NetworkLayer
from starflow.export.tensorrt.interpreter.number_types import working_dtype

# erf as a quotient of polynomials, odd powers of x over even ones, highest first; float32 cannot tell erf(4) from 1.
_ERF_ABOVE = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_BELOW = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def erf(x: NDArray) -> NDArray:
    """The error function of a float32 array."""
    x = np.clip(x, np.float32(-4), np.float32(4))
    square = x * x
    above, below = np.float32(0), np.float32(0)
    for coefficient in _ERF_ABOVE:
        above = above * square + np.float32(coefficient)
    for coefficient in _ERF_BELOW:
        below = below * square + np.float32(coefficient)
    return x * above / below


def _divide(a: NDArray, b: NDArray) -> NDArray:
    """True division of floats; of integers, rounded towards zero."""
    if a.dtype.kind == "f":
        return a / b
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


_ELEMENTWISE: dict[str, Callable[..., NDArray]] = {
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

_UNARY: dict[str, Callable[[NDArray], NDArray]] = {
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


def elementwise(layer: NetworkLayer) -> Compute:
    """ElementWise: a binary operation; dimensions of size 1 are broadcast."""
    return _ELEMENTWISE.get(layer.choice("op")) or layer.refuse(f"operation {layer.choice('op')}")


def unary(layer: NetworkLayer) -> Compute:
    """Unary: an operation on each element; ROUND takes halves to even."""
    return _UNARY.get(layer.choice("op")) or layer.refuse(f"operation {layer.choice('op')}")


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


def select(layer: NetworkLayer) -> Compute:
    """Select: elements of input 1 where the condition holds, else of input 2."""
    return np.where


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


KERNELS: dict[str, Kernel] = {
    "ELEMENTWISE": elementwise,
    "UNARY": unary,
    "ACTIVATION": activation,
    "CAST": cast,
    "IDENTITY": cast,
    "SELECT": select,
    "FILL": fill,
}
