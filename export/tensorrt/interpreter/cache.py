"""The cache update: the one layer with an effect, a write into memory that a network input and output share."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from starflow.export.tensorrt.interpreter.layers import Compute, Kernel, NetworkLayer


def kv_cache_update(layer: NetworkLayer) -> Compute:
    """KVCacheUpdate, LINEAR: cache[b, :, index[b] + s, :] = update[b, :, s, :], in place.

    The cache is [B, N, S_max, H] and the result is that very memory, as later layers see it. Positions from S_max on are
    dropped. An index below 0 is outside of what the documentation allows.
    """
    attributes = layer.attributes
    if layer.choice("cache_mode") != "LINEAR":
        layer.refuse(f"cache mode {layer.choice('cache_mode')}")
    form = getattr(attributes, "update_form", None)
    if form is not None and form.name != "PADDED_BHND":
        layer.refuse(f"update form {form.name}")

    def write(cache: NDArray, update: NDArray, index: NDArray) -> NDArray:
        if index.min() < 0:
            raise IndexError(f"write index {index.min()}")
        count, capacity = update.shape[2], cache.shape[2]
        for row, start in enumerate(index.tolist()):
            kept = max(min(count, capacity - start), 0)
            cache[row, :, start : start + kept] = update[row, :, :kept]
        # Caches are kept in the network's type, and read in the one that is computed in.
        return cache.astype(np.float32, copy=False)

    return write


def cache_pairs(
    layers: list[NetworkLayer], inputs: Mapping[str, object], outputs: Mapping[str, object]
) -> dict[str, str]:
    """The network's aliased pairs, output -> input.

    Raises:
        ExportError: a cache is not an input/output pair of the network, or something else reads it before it is updated,
            which TensorRT would let race with the write.
    """
    pairs = {}
    for layer in layers:
        if layer.kind != "KV_CACHE_UPDATE":
            continue
        cache, updated = layer.tensor(0).name, layer.output.name
        if cache not in inputs or updated not in outputs:
            layer.refuse(f"its cache {cache} -> {updated} is not an input and an output of the network")
        pairs[updated] = cache
    updates = {cache: updated for updated, cache in pairs.items()}
    for layer in layers:
        for index, tensor in enumerate(layer.inputs):
            is_update = layer.kind == "KV_CACHE_UPDATE" and index == 0
            if (
                tensor is not None
                and tensor.name in updates
                and not (is_update and layer.output.name == updates[tensor.name])
            ):
                layer.refuse(f"it reads the cache {tensor.name} that another layer updates in place")
    return pairs


KERNELS: dict[str, Kernel] = {"KV_CACHE_UPDATE": kv_cache_update}
