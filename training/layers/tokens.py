"""Images as token sequences: patch vectors in raster order.

STARFlow's patch vectors run row, column, channel (channel fastest); TARFlow's run channel, row, column.
"""

from torch import Tensor


def patchify(x: Tensor, patch: int, *, channel_first: bool) -> Tensor:
    """[B, C, H, W] -> [B, H/p * W/p, C * p * p] tokens in raster order."""
    batch, channels, height, width = x.shape
    tiles = x.reshape(batch, channels, height // patch, patch, width // patch, patch)
    order = (0, 2, 4, 1, 3, 5) if channel_first else (0, 2, 4, 3, 5, 1)
    return tiles.permute(order).reshape(batch, (height // patch) * (width // patch), -1)


def unpatchify(tokens: Tensor, patch: int, height: int, width: int, *, channel_first: bool) -> Tensor:
    """[B, T, C * p * p] -> [B, C, H, W]; height and width in pixels, the inverse of `patchify`."""
    batch, _, dim = tokens.shape
    channels, rows, columns = dim // patch**2, height // patch, width // patch
    if channel_first:
        tiles = tokens.reshape(batch, rows, columns, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
    else:
        tiles = tokens.reshape(batch, rows, columns, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    return tiles.reshape(batch, channels, height, width)
