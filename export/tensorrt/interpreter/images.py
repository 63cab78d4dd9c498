"""Layers of networks over images: convolution, and resizing to the nearest pixel."""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starflow.export.tensorrt.interpreter.layers import Compute, Kernel, NetworkLayer


def convolution(layer: NetworkLayer) -> Compute:
    """Convolution: x [B, C, ...] with a kernel [K, C / groups, ...], and a bias [K] or none, over any number of axes.

    Kernel and bias are attributes or inputs 1 and 2.
    """
    attributes = layer.attributes
    if layer.choice("padding_mode") != "EXPLICIT_ROUND_DOWN":
        layer.refuse(f"padding mode {layer.choice('padding_mode')}")
    groups, maps = attributes.num_groups, attributes.num_output_maps
    sizes, strides, dilations = (
        tuple(getattr(attributes, name)) for name in ("kernel_size_nd", "stride_nd", "dilation_nd")
    )
    padding = ((0, 0), (0, 0), *zip(attributes.pre_padding, attributes.post_padding, strict=True))
    channels = layer.tensor(0).shape[1] // groups
    own_kernel, own_bias = (np.asarray(getattr(attributes, name), np.float32) for name in ("kernel", "bias"))

    def convolve(x: NDArray, kernel: NDArray | None = None, bias: NDArray | None = None) -> NDArray:
        kernel = own_kernel.reshape(maps, channels, *sizes) if kernel is None else kernel
        bias = own_bias if bias is None and own_bias.size else bias
        x = np.pad(x, padding)
        spans = [(size - 1) * dilation + 1 for size, dilation in zip(sizes, dilations, strict=True)]
        out = [(size - span) // step + 1 for size, span, step in zip(x.shape[2:], spans, strides, strict=True)]
        parts = x.reshape(len(x), groups, channels, *x.shape[2:])
        weights = kernel.reshape(groups, maps // groups, channels, *sizes)
        # One product of matrices for each place in the kernel: no copy of the image as columns.
        total = np.zeros((len(x), groups, maps // groups, int(np.prod(out))), np.float32)
        for place in itertools.product(*map(range, sizes)):
            sides = zip(place, dilations, out, strides, strict=True)
            ranges = [
                slice(index * dilation, index * dilation + (size - 1) * step + 1, step)
                for index, dilation, size, step in sides
            ]
            cut: tuple[Any, ...] = (..., *ranges)
            where: tuple[Any, ...] = (..., *place)
            total += np.matmul(weights[where], parts[cut].reshape(len(x), groups, channels, -1))
        result = total.reshape(len(x), maps, *out)
        return result if bias is None else result + bias.reshape(-1, *[1] * len(out))

    return convolve


def resize(layer: NetworkLayer) -> Compute:
    """Resize, NEAREST and ASYMMETRIC: output pixel i is input pixel floor(i / scale). Sizes are static."""
    wanted = {
        "resize_mode": "NEAREST",
        "coordinate_transformation": "ASYMMETRIC",
        "nearest_rounding": "FLOOR",
        "selector_for_single_pixel": "FORMULA",
    }
    for attribute, value in wanted.items():
        if layer.choice(attribute) != value:
            layer.refuse(f"{attribute} {layer.choice(attribute)}")
    before, after = layer.tensor(0).shape, layer.output.shape
    scales = layer.attributes.scales or [large / small for small, large in zip(before, after, strict=True)]
    sources = [
        np.minimum(np.arange(large) / np.float32(scale), small - 1).astype(np.int64)
        for small, large, scale in zip(before, after, scales, strict=True)
    ]
    return lambda x: x[np.ix_(*sources)]


KERNELS: dict[str, Kernel] = {"CONVOLUTION": convolution, "RESIZE": resize}
