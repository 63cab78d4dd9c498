"""Images as token sequences: patch vectors in raster order.

STARFlow's patch vectors run row, column, channel (channel fastest); TARFlow's run channel, row, column.
"""

from collections.abc import Collection
from math import lcm

from torch import Tensor

Patch = tuple[int, int]  # height and width of a patch in pixels of the data


def least_sides(patches: Collection[Patch]) -> Patch:
    """Height and width of the smallest image that consists of whole patches, whichever of these they are."""
    heights, widths = zip(*patches, strict=True)
    return lcm(*heights), lcm(*widths)


def patchify(x: Tensor, patch: int | Patch, *, channel_first: bool) -> Tensor:
    """[B, C, H, W] -> [B, H/p * W/q, C * p * q] tokens in raster order, of patches p by q (or p by p)."""
    batch, channels, height, width = x.shape
    p, q = (patch, patch) if isinstance(patch, int) else patch
    tiles = x.reshape(batch, channels, height // p, p, width // q, q)
    order = (0, 2, 4, 1, 3, 5) if channel_first else (0, 2, 4, 3, 5, 1)
    return tiles.permute(order).reshape(batch, (height // p) * (width // q), -1)


def unpatchify(tokens: Tensor, patch: int | Patch, height: int, width: int, *, channel_first: bool) -> Tensor:
    """[B, T, C * p * q] -> [B, C, H, W]; height and width in pixels, the inverse of `patchify`."""
    batch, _, dim = tokens.shape
    p, q = (patch, patch) if isinstance(patch, int) else patch
    channels, rows, columns = dim // (p * q), height // p, width // q
    if channel_first:
        tiles = tokens.reshape(batch, rows, columns, channels, p, q).permute(0, 3, 1, 4, 2, 5)
    else:
        tiles = tokens.reshape(batch, rows, columns, p, q, channels).permute(0, 5, 1, 3, 2, 4)
    return tiles.reshape(batch, channels, height, width)
