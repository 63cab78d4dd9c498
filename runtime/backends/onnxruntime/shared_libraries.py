"""The shared libraries that a library needs (ELF's DT_NEEDED), and which of them this machine lacks."""

import ctypes
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

LOADABLE, DYNAMIC = 1, 2  # types of segments
END, NEEDED, STRINGS = 0, 1, 5  # tags of the dynamic segment


def needed_libraries(path: Path) -> list[str]:
    """Names of the libraries that an ELF file of 64 bits, little-endian, needs; empty for any other file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:6] != b"\x7fELF\x02\x01":
            return []
        start, size, count = (*struct.unpack_from("<Q", content, 32), *struct.unpack_from("<HH", content, 54))
        segments = [_segment(content, start + size * index) for index in range(count)]
        entries = [
            entry
            for kind, offset, _, length in segments
            if kind == DYNAMIC
            for entry in _dynamic_entries(content, offset, length)
        ]
        strings = next(value for tag, value in entries if tag == STRINGS)
        offset = next(
            offset + strings - address
            for kind, offset, address, length in segments
            if kind == LOADABLE and address <= strings < address + length
        )
        names = (offset + value for tag, value in entries if tag == NEEDED)
        return [content[name : content.find(b"\0", name)].decode() for name in names]


def missing_libraries(names: list[str]) -> list[str]:
    """Those of some libraries that the loader does not find."""
    return [name for name in names if not _loads(name)]


def _segment(content: mmap.mmap, place: int) -> tuple[int, int, int, int]:
    """Type, offset in the file, address in memory and length in the file."""
    kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", content, place)
    return kind, offset, address, length


def _dynamic_entries(content: mmap.mmap, offset: int, length: int) -> Iterator[tuple[int, int]]:
    for place in range(offset, offset + length, 16):
        tag, value = struct.unpack_from("<qQ", content, place)
        if tag == END:
            return
        yield tag, value


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
