"""Layers that move data without computing on it: shuffle, slice, gather, scatter, concatenation, shape, squeeze, unsqueeze."""

from collections.abc import Sequence

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
    """Slice: element i of an axis is start + stride i, for i below size; a stride of 0 repeats.

    Start, size, stride and axes are attributes or inputs 1, 2, 3 and 5. In mode STRICT_BOUNDS nothing may lie outside of the
    input; in mode FILL what does is input 4, or 0.
    """
    attributes = layer.attributes
    mode = layer.choice("mode")
    if mode not in ("STRICT_BOUNDS", "FILL"):
        layer.refuse(f"mode {mode}")
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
        chosen = list(zip(fixed_axes if axes is None else axes.tolist(), *ranges, strict=True))
        if mode == "FILL":
            return _filled(x, chosen, 0 if fill is None else fill.item())
        for axis, first, count, step in chosen:
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


def _filled(x: NDArray, ranges: Sequence[tuple[int, int, int, int]], value: float) -> NDArray:
    """The elements that ranges (axis, start, size, stride) name, and a value where they lie outside of x."""
    for axis, first, count, step in ranges:
        places = first + step * np.arange(count)
        inside = (places >= 0) & (places < x.shape[axis])
        taken = np.take(x, np.where(inside, places, 0), axis) if x.shape[axis] else np.zeros_like(x)
        x = np.where(inside.reshape([-1 if each == axis else 1 for each in range(x.ndim)]), taken, x.dtype.type(value))
    return x


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


def scatter(layer: NetworkLayer) -> Compute:
    """Scatter, ND: a copy of x whose slices at the indices are the updates, like ONNX's ScatterND without a reduction."""
    if layer.choice("mode") != "ND":
        layer.refuse(f"mode {layer.choice('mode')}")

    def put(x: NDArray, indices: NDArray, updates: NDArray) -> NDArray:
        if indices.size and indices.min() < 0:
            raise IndexError(f"index {indices.min()}, and TensorRT takes none below 0")
        result = x.copy()
        result[tuple(np.moveaxis(indices, -1, 0))] = updates
        return result

    return put


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
    "SCATTER": scatter,
    "CONCATENATION": concatenation,
    "SHAPE": lambda layer: lambda x: np.array(x.shape, np.int64),
    "SQUEEZE": lambda layer: _squeeze,  # without the axes in input 1, or without any of size 1 where it is not set
    "UNSQUEEZE": lambda layer: _unsqueeze,  # with axes of size 1, at the places in the output that input 1 names
}
