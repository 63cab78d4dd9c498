"""Images as token sequences, in NumPy: patch vectors, and the patches and order of each flow block.

Between two flow blocks the data are tokens of the model's patch size in raster order.
"""

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.bundle.autoregressive_manifest import Block, ModelSummary, Patch


def patchify(x: NDArray, model: ModelSummary) -> NDArray:
    """[N, C, H, W] -> [N, T, D], patches of the model's size in raster order."""
    return _cut(x, model, model.patch)


def unpatchify(tokens: NDArray, model: ModelSummary) -> NDArray:
    """[N, T, D] -> [N, C, H, W], the inverse of `patchify`."""
    return _join(tokens, model, model.patch)


def to_block(tokens: NDArray, model: ModelSummary, block: Block) -> NDArray:
    """Tokens [N, T, D] of the model -> the same values as tokens of a flow block, in its patches and its order."""
    patch = block.patch_in(model)
    own = tokens if patch == model.patch else _cut(unpatchify(tokens, model), model, patch)
    return own[:, ::-1] if block.reversed else own


def from_block(own: NDArray, model: ModelSummary, block: Block) -> NDArray:
    """Tokens of a flow block -> tokens [N, T, D] of the model, the inverse of `to_block`."""
    raster, patch = own[:, ::-1] if block.reversed else own, block.patch_in(model)
    return raster if patch == model.patch else patchify(_join(raster, model, patch), model)


def _cut(x: NDArray, model: ModelSummary, patch: Patch) -> NDArray:
    batch, channels, height, width = x.shape
    (p, q), rows, columns = patch, height // patch[0], width // patch[1]
    tiles = x.reshape(batch, channels, rows, p, columns, q)
    order = (0, 2, 4, 3, 5, 1) if model.patch_order == "row-column-channel" else (0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(tiles.transpose(order)).reshape(batch, rows * columns, channels * p * q)


def _join(tokens: NDArray, model: ModelSummary, patch: Patch) -> NDArray:
    channels, height, width = model.data_shape
    (p, q), rows, columns = patch, height // patch[0], width // patch[1]
    if model.patch_order == "row-column-channel":
        tiles = tokens.reshape(-1, rows, columns, p, q, channels).transpose(0, 5, 1, 3, 2, 4)
    else:
        tiles = tokens.reshape(-1, rows, columns, channels, p, q).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(tiles).reshape(-1, channels, height, width)
