"""What a kernel is: it reads a layer's attributes once and returns the function that computes the layer."""

from collections.abc import Callable

from numpy.typing import NDArray

from starflow.export.tensorrt.interpreter.layers import NetworkLayer

# Takes the layer's inputs by index, None where an optional one is not set. The result may be a view of an input.
Compute = Callable[..., NDArray]
Kernel = Callable[[NetworkLayer], Compute]


def axes_of(mask: int) -> tuple[int, ...]:
    """TensorRT's bit mask of axes as axes."""
    return tuple(axis for axis in range(mask.bit_length()) if mask >> axis & 1)
