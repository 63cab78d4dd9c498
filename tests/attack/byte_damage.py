"""Damage to the bytes of a file: as disks, networks and editors do it, and as an attacker who knows the format does it."""

import json
from collections.abc import Callable

from numpy.random import Generator

from tests.attack.json_damage import damaged_json

HEADER = 8  # bytes before a safetensors header: its length


def damaged_bytes(draw: Generator, content: bytes, first: int = 0) -> tuple[bytes, str]:
    """The content with some damage at or after byte `first`, and what it is."""
    size = len(content)
    if size <= first:
        return content + b"\x00", "one byte more"
    place = int(draw.integers(first, size))
    length = min(size - place, int(draw.choice([1, 4, 16, 512, 4096])))
    kinds: list[Callable[[], tuple[bytes, str]]] = [
        *[lambda: (_flipped(content, place, 1 << int(draw.integers(8))), f"a bit of byte {place}")] * 3,
        lambda: (content[:place] + draw.bytes(length) + content[place + length :], f"{length} bytes from {place}"),
        lambda: (content[:place] + bytes(length) + content[place + length :], f"{length} zeros from {place}"),
        lambda: (content[:place] + b"\xff" * length + content[place + length :], f"{length} ones from {place}"),
        lambda: (content[:place], f"cut at {place}"),
        lambda: (content[:place] + bytes(size - place), f"zeros from {place}, as after a power loss"),
        lambda: (content + draw.bytes(length), f"{length} bytes more"),
        lambda: (content[:place] + content[place + length :], f"{length} bytes missing at {place}"),
        lambda: (
            content[:place] + content[place : place + length] + content[place:],
            f"{length} bytes twice at {place}",
        ),
    ]
    return kinds[draw.integers(len(kinds))]()


def damaged_safetensors(draw: Generator, content: bytes) -> tuple[bytes, str]:
    """A safetensors file whose header is another one: an edit of its JSON, or another length."""
    length = int.from_bytes(content[:HEADER], "little")
    end = HEADER + length
    if draw.random() < 0.2:
        other = [
            0,
            1,
            length - 1,
            length + 1,
            len(content),
            len(content) - HEADER,
            2**31,
            2**63,
            2**64 - 1,
            100_000_001,
        ]
        new = other[draw.integers(len(other))]
        return new.to_bytes(HEADER, "little") + content[HEADER:], f"header length {new}"
    header, note = damaged_json(draw, content[HEADER:end].rstrip())
    return len(header).to_bytes(HEADER, "little") + header + content[end:], f"header: {note}"


def safetensors_data(content: bytes) -> int:
    """Where the tensors of a safetensors file begin."""
    return HEADER + int.from_bytes(content[:HEADER], "little")


def tensor_names(content: bytes) -> list[str]:
    """Names of the tensors of a safetensors file."""
    return [name for name in json.loads(content[HEADER : safetensors_data(content)]) if name != "__metadata__"]


def _flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
