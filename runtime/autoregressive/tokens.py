"""Images as token sequences, in NumPy: patch vectors in raster order."""

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.bundle.autoregressive_manifest import ModelSummary


def patchify(x: NDArray, model: ModelSummary) -> NDArray:
    """[N, C, H, W] -> [N, T, D]."""
    batch, channels, height, width = x.shape
    patch = model.patch_size
    tiles = x.reshape(batch, channels, height // patch, patch, width // patch, patch)
    order = (0, 2, 4, 3, 5, 1) if model.patch_order == "row-column-channel" else (0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(tiles.transpose(order)).reshape(batch, model.tokens, model.token_dim)


def unpatchify(tokens: NDArray, model: ModelSummary) -> NDArray:
    """[N, T, D] -> [N, C, H, W]."""
    channels, height, width = model.data_shape
    patch = model.patch_size
    rows, columns = height // patch, width // patch
    if model.patch_order == "row-column-channel":
        tiles = tokens.reshape(-1, rows, columns, patch, patch, channels).transpose(0, 5, 1, 3, 2, 4)
    else:
        tiles = tokens.reshape(-1, rows, columns, channels, patch, patch).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(tiles).reshape(-1, channels, height, width)
