"""Layers that move data without computing on it: shuffle, slice, gather, concatenation, shape, squeeze, unsqueeze."""

import numpy as np
from numpy.typing import NDArray

from starflow.export.tensorrt.interpreter.layers import Compute, Kernel, NetworkLayer


def shuffle(layer: NetworkLayer) -> Compute:
    """Shuffle: a transpose, a reshape, a transpose.

    In the reshape -1 infers a size, and 0 takes the size the input has there if `zero_is_placeholder`. The dimensions may
    be input 1.
    """
    attributes = layer.attributes
    rank = len(layer.tensor(0).shape)
    first, second = tuple(attributes.first_transpose)[:rank], tuple(attributes.second_transpose)
    # Permutations come with all eight places; those beyond the rank stay where they are.
    first_moves = first != tuple(range(rank))
    second = second[: len(layer.output.shape)]
    second_moves = second != tuple(range(len(second)))
    dynamic = layer.has(1)
    fixed = None if dynamic or attributes.reshape_dims is None else tuple(attributes.reshape_dims)
    placeholder = attributes.zero_is_placeholder and (dynamic or (fixed is not None and 0 in fixed))

    def rearrange(x: NDArray, dimensions: NDArray | None = None) -> NDArray:
        if first_moves:
            x = x.transpose(first)
        shape = fixed if dimensions is None else tuple(dimensions.tolist())
        if shape is not None:
            if placeholder:
                shape = tuple(size or x.shape[axis] for axis, size in enumerate(shape))
            x = x.reshape(shape)
        return x.transpose(second) if second_moves else x

    return rearrange


def slice_(layer: NetworkLayer) -> Compute:
    """Slice, STRICT_BOUNDS: element i of an axis is start + stride i, for i below size; a stride of 0 repeats.

    Start, size, stride and axes are attributes or inputs 1, 2, 3 and 5. Nothing may lie outside of the input.
    """
    attributes = layer.attributes
    if layer.choice("mode") != "STRICT_BOUNDS":
        layer.refuse(f"mode {layer.choice('mode')}")
    # An attribute is None where an input takes its place.
    fixed = [list(getattr(attributes, name) or ()) for name in ("start", "shape", "stride")]
    every_axis = list(range(len(layer.tensor(0).shape)))
    fixed_axes = every_axis if attributes.axes is None else list(attributes.axes)

    def cut(
        x: NDArray,
        start: NDArray | None = None,
        size: NDArray | None = None,
        stride: NDArray | None = None,
        fill: NDArray | None = None,
        axes: NDArray | None = None,
    ) -> NDArray:
        given = zip(fixed, (start, size, stride), strict=True)
        ranges = [default if value is None else value.tolist() for default, value in given]
        index = [slice(None)] * x.ndim
        shape = list(x.shape)
        for axis, first, count, step in zip(fixed_axes if axes is None else axes.tolist(), *ranges, strict=True):
            index[axis] = _elements(first, count, step, x.shape[axis])
            shape[axis] = count
        return np.broadcast_to(x[tuple(index)], shape)

    return cut


def _elements(first: int, count: int, step: int, size: int) -> slice:
    """`count` elements of an axis of `size`, `step` apart; for a step of 0 the one that is repeated."""
    if not count:
        return slice(0, 0)
    last = first + (count - 1) * step
    if not (0 <= first < size and 0 <= last < size):
        raise ValueError(f"elements {first} to {last} of an axis that has {size}")
    if step < 0:
        return slice(first, last - 1 if last else None, step)
    return slice(first, last + 1, step or 1)


def gather(layer: NetworkLayer) -> Compute:
    """Gather: DEFAULT like ONNX's Gather, ELEMENT like GatherElements, ND like GatherND.

    Indices must be at least 0 and below the size of the axis: unlike in ONNX, negative ones do not count from the end.
    """
    mode, axis = layer.choice("mode"), layer.attributes.axis
    if layer.attributes.num_elementwise_dims:
        layer.refuse(f"{layer.attributes.num_elementwise_dims} elementwise dimensions")
    if mode not in ("DEFAULT", "ELEMENT", "ND"):
        layer.refuse(f"mode {mode}")

    def pick(x: NDArray, indices: NDArray) -> NDArray:
        if indices.size and indices.min() < 0:
            raise IndexError(f"index {indices.min()}, and TensorRT takes none below 0")
        if mode == "DEFAULT":
            return np.take(x, indices, axis)
        if mode == "ELEMENT":
            return np.take_along_axis(x, indices, axis)
        return x[tuple(np.moveaxis(indices, -1, 0))]

    return pick


def concatenation(layer: NetworkLayer) -> Compute:
    """Concatenation: the inputs joined along an axis."""
    axis = layer.attributes.axis
    return lambda *parts: np.concatenate(parts, axis)


def _squeeze(x: NDArray, axes: NDArray | None = None) -> NDArray:
    return np.squeeze(x, None if axes is None else tuple(axes.ravel().tolist()))


def _unsqueeze(x: NDArray, axes: NDArray) -> NDArray:
    return np.expand_dims(x, tuple(axes.ravel().tolist()))


KERNELS: dict[str, Kernel] = {
    "SHUFFLE": shuffle,
    "SLICE": slice_,
    "GATHER": gather,
    "CONCATENATION": concatenation,
    "SHAPE": lambda layer: lambda x: np.array(x.shape, np.int64),
    "SQUEEZE": lambda layer: _squeeze,  # without the axes in input 1, or without any of size 1 where it is not set
    "UNSQUEEZE": lambda layer: _unsqueeze,  # with axes of size 1, at the places in the output that input 1 names
}
