"""The sizes that graphs are written for: a bundle has graphs for each of its shapes and batch sizes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GraphSize:
    """One of them."""

    data_shape: tuple[int, ...]  # [C, H, W] of the data, or [D] of a point
    batch: int  # images run together


def size_suffix(shape: tuple[int, int] | None, batch: int | None) -> str:
    """What tells the graphs of a size from those of the default shape and the largest batch, for which it is empty."""
    return (f".{shape[0]}x{shape[1]}" if shape else "") + (f".batch{batch}" if batch else "")
