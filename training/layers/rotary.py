"""Rotary position angles (Su et al., 2021) over image axes and over a line.

STARFlow turns each pair of components of a head by angles of row, column and a third axis that text tokens and video frames
share. Positions are always raster positions, in reversed blocks too.
"""

import torch
from torch import Tensor

from starflow.training.layers.layer_config import THIRD_AXIS_ANGLES


def axis_angles(
    height: int,
    width: int,
    side: float,
    *,
    head_dim: int,
    text_model: bool,
    text_tokens: int = 0,
    device: torch.device | None = None,
) -> Tensor:
    """Angles over row, column and, in models with text, a third axis.

    Args:
        height, width: Image size in tokens.
        side: Length L that positions are scaled to: index / sqrt(height * width) * L.
        head_dim: Size of a head; it holds head_dim / 2 angles.
        text_model: Whether the model has text at all.
        text_tokens: Number m of text rows in front; token j sits at j / m * L on the third axis.
        device: Where they are computed. A copy to a GPU would wait for all that is queued there.

    Returns:
        [text_tokens + height * width, head_dim / 2] float32, radians.
    """
    third = THIRD_AXIS_ANGLES if text_model else 0
    spatial = head_dim // 2 - third
    frequencies = _frequencies(spatial // 2, device)
    scale = side / (height * width) ** 0.5
    rows = torch.arange(height, dtype=torch.float32, device=device) * scale
    columns = torch.arange(width, dtype=torch.float32, device=device) * scale
    tokens = torch.cat(
        [
            (rows[:, None, None] * frequencies).expand(height, width, -1),
            (columns[None, :, None] * frequencies).expand(height, width, -1),
            torch.zeros(height, width, third, device=device),
        ],
        dim=-1,
    ).reshape(height * width, -1)
    if not text_tokens:
        return tokens
    position = torch.arange(text_tokens, dtype=torch.float32, device=device) / text_tokens * side
    turned = position[:, None] * _frequencies(third, device)
    text = torch.cat([torch.zeros(text_tokens, spatial, device=device), turned], dim=-1)
    return torch.cat([text, tokens])


def line_angles(length: int, *, head_dim: int, device: torch.device | None = None) -> Tensor:
    """Angles of a language model: index * 10000^(-2j / head_dim), [length, head_dim / 2] float32, radians."""
    places = torch.arange(length, dtype=torch.float32, device=device)
    return places[:, None] * _frequencies(head_dim // 2, device)


def _frequencies(count: int, device: torch.device | None) -> Tensor:
    return 10000.0 ** (-torch.arange(count, dtype=torch.float32, device=device) / max(count, 1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, half: bool) -> Tensor:
    """Turn the component pairs of each head in x [..., S, head_dim]: (u, v) -> (u cos - v sin, v cos + u sin).

    `cos` and `sin` are [S, head_dim / 2]. `half` pairs component k with k + head_dim / 2 (Hugging Face style) in place of 2k
    with 2k + 1.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    if half:
        u, v = x.chunk(2, dim=-1)
        return torch.cat([u * cos - v * sin, v * cos + u * sin], dim=-1)
    u, v = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([u * cos - v * sin, v * cos + u * sin], dim=-1).flatten(-2)
