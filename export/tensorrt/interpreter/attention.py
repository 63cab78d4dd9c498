"""Layers of a transformer: rotary embedding, and the attention between its two boundary layers."""

import numpy as np
from numpy.typing import NDArray

from starflow.export.tensorrt.interpreter.layers import Compute, Kernel, NetworkLayer
from starflow.export.tensorrt.interpreter.reductions import softmax_over


def rotary_embedding(layer: NetworkLayer) -> Compute:
    """RotaryEmbedding: x [B, N, S, H] turned in planes of two components by the angle of a position.

    Cosines and sines are [B, S, R / 2], or tables [positions, R / 2] read at position ids [B, S] (input 3). R is
    `rotary_embedding_dim`, 0 meaning H; components from R on stay. A plane is two neighbours where `interleaved`, else
    components i and i + R / 2.
    """
    interleaved = layer.attributes.interleaved
    turned = layer.attributes.rotary_embedding_dim or layer.tensor(0).shape[-1]
    half = turned // 2
    planes = (slice(0, turned, 2), slice(1, turned, 2)) if interleaved else (slice(0, half), slice(half, turned))
    one, other = ((..., plane) for plane in planes)

    def turn(x: NDArray, cos: NDArray, sin: NDArray, ids: NDArray | None = None) -> NDArray:
        if ids is not None:
            if ids.size and ids.min() < 0:
                raise IndexError(f"position {ids.min()}")
            cos, sin = cos[ids], sin[ids]
        cos, sin = cos[:, None], sin[:, None]
        result = np.empty_like(x)
        result[..., turned:] = x[..., turned:]
        a, b = x[one], x[other]
        result[one] = a * cos - b * sin
        result[other] = b * cos + a * sin
        return result

    return turn


def attention_input(layer: NetworkLayer) -> Compute:
    """Attention: softmax(q k^T under a mask) v, computed at its input boundary.

    q is [B, N, S, H]; k and v [B, N_kv, K, H], each head serving N / N_kv neighbouring heads of q. The scale is no
    attribute: it arrives multiplied into q and k. A boolean mask (input 3) is True where a position may be attended to, a
    floating-point mask is added. `decomposable` chooses between kernels, not between results.
    """
    attention = layer.attributes.attention
    for attribute in ("query_lengths", "key_value_lengths", "normalization_quantize_scale"):
        if getattr(attention, attribute, None) is not None:
            layer.refuse(f"attention with {attribute}")
    for attribute in ("query_form", "key_value_form"):
        form = getattr(attention, attribute, None)
        if form is not None and form.name != "PADDED_BHND":
            layer.refuse(f"attention with {attribute} {form.name}")
    if attention.norm_op.name != "SOFTMAX":
        layer.refuse(f"attention with normalisation {attention.norm_op.name}")
    # Releases without alignments have one flag, which means the first of them.
    kind = getattr(attention, "causal_kind", None)
    causal = kind.name if kind is not None else "UPPER_LEFT" if attention.causal else "NONE"
    if causal not in ("NONE", "UPPER_LEFT", "LOWER_RIGHT"):
        layer.refuse(f"attention with causal mask {causal}")

    def attend(q: NDArray, k: NDArray, v: NDArray, mask: NDArray | None = None) -> NDArray:
        batch, heads, count, size = q.shape
        groups, keys = k.shape[1], k.shape[2]
        # Heads that share keys stand next to each other: as more rows of one product.
        scores = np.matmul(q.reshape(batch, groups, -1, size), k.swapaxes(-1, -2)).reshape(batch, heads, count, keys)
        if causal != "NONE":
            offset = keys - count if causal == "LOWER_RIGHT" else 0
            mask = np.tri(count, keys, offset, dtype=np.bool_)
        if mask is not None:
            scores = np.where(mask, scores, np.float32(-np.inf)) if mask.dtype == np.bool_ else scores + mask
        weights = softmax_over(scores, -1).reshape(batch, groups, -1, keys)
        return np.matmul(weights, v).reshape(batch, heads, count, v.shape[-1])

    return attend


KERNELS: dict[str, Kernel] = {
    "ROTARY_EMBEDDING": rotary_embedding,
    "ATTENTION_INPUT": attention_input,
    "ATTENTION_OUTPUT": lambda layer: lambda x: x,  # the input boundary has computed it
}
