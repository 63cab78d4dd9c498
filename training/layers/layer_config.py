"""What one transformer layer depends on, in either family."""

from dataclasses import dataclass
from typing import Literal

THIRD_AXIS_ANGLES = 8  # rotary angles reserved in every model with text, also in its blocks without text


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """One transformer layer, spelled out."""

    channels: int  # width of the residual stream
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int  # width of the MLP's hidden layer
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    gated_mlp: bool = False
    qk_norm: bool = False
    post_norm: bool = False
    bias: bool = True
    # Pair component k with k + head_dim / 2 in rotary turns, in place of 2k with 2k + 1.
    half_rotation: bool = False
    causal: bool = True  # whether a token sees only itself and the tokens before it


def head_dim_problem(head_dim: int, *, text_model: bool) -> str | None:
    """Why heads of this size cannot hold as many angles for rows as for columns; None if they can."""
    spatial = head_dim // 2 - (THIRD_AXIS_ANGLES if text_model else 0)
    if head_dim % 2 == 0 and spatial >= 0 and spatial % 2 == 0:
        return None
    least = ", at least 16 in a model with text" if text_model else ""
    return f"head_dim: found {head_dim}, expected a multiple of 4{least}"
