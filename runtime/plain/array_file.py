"""Reads NumPy's files, after their headers have been compared with what they hold."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.limits import HARMLESS_BYTES, MOST_EXPANSION
from starflow.runtime.plain.memory import check_memory
from starflow.runtime.plain.regular_file import open_regular

NUMBERS = "fiub"  # kinds of NumPy's types: floating point, integers with and without sign, truth values
TEXTS = "U"


def read_array(path: Path, kinds: str = NUMBERS) -> NDArray[Any]:
    """The array of a .npy file.

    Args:
        path: The file.
        kinds: Kinds of types that may be in it.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it is not such an array, or does not hold what its header says; one line that says what is wrong.
    """
    with open_regular(path) as file:
        size = path.stat().st_size
        shape, dtype = _header(file, size, kinds)
        _check_memory(math.prod(shape) * dtype.itemsize)
        file.seek(0)
        return npy.read_array(file, allow_pickle=False)


def read_archive(path: Path, kinds: str = NUMBERS + TEXTS) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name, each compared with its checksum; for arguments and errors see `read_array`."""
    with open_regular(path) as file:
        try:
            return _arrays(file, path.stat().st_size, kinds)
        # A damaged directory also sends reads to places that do not exist.
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            raise ValueError(f"it is damaged ({error or type(error).__name__})") from None


def _arrays(file: BinaryIO, size: int, kinds: str) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("it holds two arrays of one name")
        total = sum(entry.file_size for entry in entries)
        if total > max(HARMLESS_BYTES, MOST_EXPANSION * size):
            raise ValueError(f"it grows more than {MOST_EXPANSION} times; store it without compression (np.savez)")
        _check_memory(total)
        return {entry.filename.removesuffix(".npy"): _entry(archive, entry, kinds) for entry in entries}


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, kinds: str) -> NDArray[Any]:
    try:
        with archive.open(entry) as member:
            _header(member, entry.file_size, kinds)
        with archive.open(entry) as member:
            array = npy.read_array(member, allow_pickle=False)
            if member.read(1):  # and so to the end, where the checksum is compared
                raise ValueError("it holds more than its header says")
            return array
    except ValueError as error:
        raise ValueError(f"{entry.filename}: {error}") from None


def _header(file: IO[bytes], size: int, kinds: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array in a file of so many bytes."""
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
        header = file.tell()
    except (OSError, MemoryError):
        raise
    except Exception as error:  # NumPy evaluates the header as Python, and tells of damage by many types
        raise ValueError("it is not a .npy array") from error
    if dtype.kind not in kinds:
        raise ValueError(f"it holds {dtype.name}, expected {'numbers' if kinds == NUMBERS else 'numbers or text'}")
    if not all(type(length) is int and 0 <= length < 1 << 63 for length in shape):
        raise ValueError(f"its header says {list(shape)}, which is no shape")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > size - header:
        raise ValueError(f"its header says {claimed:,} bytes, but {size - header:,} are there")
    return shape, dtype


def _check_memory(needed: int) -> None:
    try:
        check_memory(needed, "it", "give fewer values, or use a larger machine")
    except UsageError as error:
        raise ValueError(str(error)) from None
