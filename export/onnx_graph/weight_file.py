"""Weights as one safetensors file that ONNX graphs can point into.

A graph's external data names a file, an offset and a length; here the file is a valid safetensors file as well, so any
tool can read it. Every tensor starts at a multiple of 64 bytes and the first at a multiple of 4,096, for memory mapping;
the safetensors format allows no gaps, so the padding is named (`_padding.N`).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

ALIGNMENT = 64
PAGE = 4096
SAFETENSORS_TYPES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
    np.dtype(np.int64): "I64",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",  # codes of 4 bits as well, two to a byte
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `offset` is absolute in the file, both in bytes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    length: int


class WeightFile:
    """Writes tensors one at a time: their data go to disk at once, the header when the file is closed.

    The size of the header is known only at the end, so `header_room` bytes are kept free for it; it is padded with spaces, as
    the format allows.
    """

    def __init__(self, path: Path, header_room: int = 1 << 20) -> None:
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
        self._data_start = -(-header_room // PAGE) * PAGE
        self._entries: dict[str, dict[str, object]] = {}
        self._end = self._data_start
        self._file: BinaryIO | None = None

    def __enter__(self) -> "WeightFile":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("wb")
        self._file.seek(self._data_start)
        return self

    def __exit__(self, error: object, *_: object) -> None:
        assert self._file is not None
        if error is None:
            header = json.dumps(self._entries).encode()
            room = self._data_start - 8
            if len(header) > room:
                raise ValueError(f"{self.path}: the header needs {len(header)} bytes, {room} are kept free")
            self._file.seek(0)
            self._file.write(room.to_bytes(8, "little") + header.ljust(room))
        self._file.close()

    def add(self, name: str, load: Callable[[], NDArray]) -> StoredTensor:
        """Store a tensor under `name`; one that is there already is not even loaded again."""
        if name in self.tensors:
            return self.tensors[name]
        assert self._file is not None
        array = load()
        if padding := -self._end % ALIGNMENT:
            self._append(f"_padding.{len(self._entries)}", "U8", (padding,), b"\0" * padding)
        offset = self._end
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._append(name, SAFETENSORS_TYPES[array.dtype], array.shape, raw.data)
        self.tensors[name] = StoredTensor(name, array.dtype, array.shape, offset, array.nbytes)
        return self.tensors[name]

    def _append(self, name: str, kind: str, shape: tuple[int, ...], data: bytes | memoryview) -> None:
        assert self._file is not None
        start = self._end - self._data_start
        self._end += self._file.write(data)
        end = self._end - self._data_start
        self._entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}


def refer(tensor: TensorProto, stored: StoredTensor, location: str) -> TensorProto:
    """Let an initializer take its data from a weight file, at `location` relative to the graph's folder."""
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", stored.offset), ("length", stored.length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def external_tensor(stored: StoredTensor, location: str) -> TensorProto:
    """A new initializer for a stored tensor, under its name."""
    kind = helper.np_dtype_to_tensor_dtype(stored.dtype)
    return refer(TensorProto(name=stored.name, data_type=kind, dims=stored.shape), stored, location)
