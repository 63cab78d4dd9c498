"""Files of `torch.save`: their tensors, mapped from the file, whose checksums are compared first."""

import io
import math
import mmap
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from starflow.runtime.plain.regular_file import open_regular
from starflow.training.published.pickled_tensors import StorageRecord, TensorRecord, read_pickle

# The size of a pickle of 80,000 tensors. Their numbers lie beside it.
MOST_PICKLE_BYTES = 16 << 20
MOST_DIMENSIONS = 16
TYPES = {
    f"{kind}Storage": dtype
    for kind, dtype in (
        *(("Double", torch.float64), ("Float", torch.float32), ("Half", torch.float16), ("BFloat16", torch.bfloat16)),
        *(("Long", torch.int64), ("Int", torch.int32), ("Short", torch.int16), ("Char", torch.int8)),
        *(("Byte", torch.uint8), ("Bool", torch.bool)),
    )
}
# How a file from before PyTorch 1.6 begins.
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
LOCAL_HEADER = 30  # bytes of a zip entry's own header, before its name
# What a damaged archive raises; its directory may send reads to places that do not exist.
DAMAGE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, struct.error, EOFError, OSError)
PADDING = b"FB"  # extra field by which PyTorch aligns the data

# Where the numbers of a storage are in the file: first byte and number of bytes.
Places = Callable[[StorageRecord], tuple[int, int]]


def read_torch_file(path: Path) -> Any:
    """What a file of `torch.save` holds, as far as dictionaries go; tensors are mapped from it, and nothing in it is run.

    The checksum of every part is compared. A file from before PyTorch 1.6 has none.

    Raises:
        ForeignNameError: it holds more than dense tensors, plain containers and numbers.
        DamagedPickleError: its pickle is damaged.
        ValueError: it is not such a file, or is damaged otherwise.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
        zipped = file.read(2) == b"PK"
        file.seek(0)
        content, places = _zipped(file) if zipped else _legacy(file)
        # Private: PyTorch wants writable memory, and what it writes stays in this process.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return _shown(content, lambda record: _tensor(record, mapped, places), depth=2)


def _shown(content: Any, tensor: Callable[[TensorRecord], Tensor], depth: int) -> Any:
    if isinstance(content, TensorRecord):
        return tensor(content)
    if isinstance(content, dict) and depth:
        return {name: _shown(value, tensor, depth - 1) for name, value in content.items()}
    return content


def _tensor(record: TensorRecord, mapped: mmap.mmap, places: Places) -> Tensor:
    """A tensor over the mapped file.

    Raises:
        ValueError: it reaches beyond its storage.
    """
    dtype, shape, strides = TYPES[record.storage.kind], record.shape, record.strides
    count = math.prod(shape)
    if len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"a tensor has the shape {list(shape[:MOST_DIMENSIONS])} and {len(strides)} strides")
    start, length = places(record.storage)
    first = record.storage.start + record.offset
    last = first + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    if (last + 1) * dtype.itemsize > length or start + length > len(mapped) or count > len(mapped):
        raise ValueError(f"a tensor of shape {list(shape)} reaches beyond its storage")
    if start % dtype.itemsize:  # PyTorch aligns its files, others need not
        content = bytearray(mapped[start : start + length])
        numbers = torch.frombuffer(content, dtype=dtype, count=length // dtype.itemsize)
    else:
        numbers = torch.frombuffer(mapped, dtype=dtype, count=length // dtype.itemsize, offset=start)
    return numbers.as_strided(shape, strides, first)


def check_archive(path: Path) -> None:
    """Compare every part of a file of `torch.save` with its checksum, which PyTorch does not.

    Raises:
        ValueError: one differs, or it is no such file.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"the checksum of {damaged} differs")
        except DAMAGE as error:
            raise ValueError(str(error)) from None


def _zipped(file: BinaryIO) -> tuple[Any, Places]:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            pickles = [name for name in entries if name.endswith("/data.pkl")]
            if len(pickles) != 1 or len(entries) != len(archive.infolist()):
                raise ValueError(f"it holds {len(pickles)} pickles, or one name twice; expected one")
            size = file.seek(0, 2)
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
                raise ValueError("it is compressed, which torch.save does not do")
            if sum(entry.file_size for entry in entries.values()) > size:
                raise ValueError("its parts are larger than the file")
            if entries[pickles[0]].file_size > MOST_PICKLE_BYTES:
                raise ValueError(f"its pickle has more than {MOST_PICKLE_BYTES:,} bytes")
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} differs")
            folder = pickles[0].removesuffix("data.pkl")
            if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
                raise ValueError("its numbers are big-endian; save it again on a usual machine")
            starts = {name: _data_start(file, entry) for name, entry in entries.items()}
            content = read_pickle(io.BytesIO(archive.read(pickles[0])))
    except DAMAGE as error:
        raise ValueError(str(error)) from None

    def place(storage: StorageRecord) -> tuple[int, int]:
        name = f"{folder}data/{storage.key}"
        if name not in entries:
            raise ValueError(f"{name} is missing")
        return starts[name], entries[name].file_size

    return content, place


def _data_start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the data of an entry begin; its own header has to agree with the directory, which alone is checked otherwise."""
    file.seek(entry.header_offset)
    header = file.read(LOCAL_HEADER)
    name, extra = struct.unpack("<HH", header[26:30])
    file.seek(name, 1)
    padding = file.read(extra)
    if padding[:2] == PADDING and padding[4:].strip(b"Z"):
        raise ValueError(f"the header of {entry.filename} is damaged")
    return entry.header_offset + LOCAL_HEADER + name + extra


def _legacy(file: BinaryIO) -> tuple[Any, Places]:
    if read_pickle(file) != LEGACY_MAGIC or read_pickle(file) != LEGACY_VERSION:
        raise ValueError("it does not begin as a file of torch.save does")
    system = read_pickle(file)
    if not isinstance(system, dict) or not system.get("little_endian"):
        raise ValueError("its numbers are big-endian; save it again on a usual machine")
    content, keys = read_pickle(file), read_pickle(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its list of storages is damaged")
    kinds: dict[str, str] = {}
    for storage in _storages(content):
        kinds[storage.key] = storage.kind
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8).ljust(8, b"\xff"))
        if key not in kinds or count < 0:
            raise ValueError(f"storage {key:.40} is damaged")
        length = count * TYPES[kinds[key]].itemsize
        places[key] = file.tell(), length
        file.seek(length, 1)
    return content, lambda storage: places[storage.key]


def _storages(content: Any) -> list[StorageRecord]:
    """The storages of all tensors in nested containers."""
    found: list[StorageRecord] = []
    waiting, seen = [content], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, TensorRecord):
            found.append(value.storage)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value
    return found
