"""What a format of shards is."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

Content = Literal["png", "npy"]  # an image, or data that is no image


class Item(NamedTuple):
    """An image of a shard."""

    facts: dict[str, int | float | str]  # see `ImageSet.facts`; the same names for all images of a set
    content: bytes  # of a file


@dataclass(frozen=True)
class ShardFormat:
    """How a shard is written. Equal items make equal bytes."""

    suffix: str  # of the file's name
    # Write a file at a path, with content of a kind, by the function that the context yields, image by image.
    write: Callable[[Path, Content], AbstractContextManager[Callable[[Item], None]]]
    is_whole: Callable[[Path], bool]  # whether a file begins and ends as one that was written; it exists
