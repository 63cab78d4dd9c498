"""Files with one bit flipped."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")


def read_flipped(
    path: Path, places: Iterable[int], read: Callable[[Path], Found], refusal: type[Exception]
) -> Iterator[tuple[int, Found]]:
    """Flip one bit of a file after the other, and read it: the bit's place and what was read, unless it was refused in one line."""
    content = path.read_bytes()
    for place in places:
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = read(path)
        except refusal as error:
            assert "\n" not in str(error)
        else:
            yield place, found
