"""`.npy` files that NumPy would not write, and arrays that nobody expects."""

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator

from tests.attack.byte_damage import damaged_bytes

SHAPES = (
    "()",
    "(0,)",
    "(-1, 4)",
    "(10**12,)",
    "(1099511627776, 4)",
    "(3.5,)",
    "None",
    "(" * 1000,
    "('a',)",
    "(1,) * 10**9",
    "(True,)",
)
TYPES = (
    "'|O'",
    "'<U9'",
    "'<f2'",
    "'>f4'",
    "'<c8'",
    "'<M8[s]'",
    "'|V8'",
    "'|b1'",
    "[('a', '<f4')]",
    "'<f4', '<f4'",
    "'<U536870911'",
    "7",
)


def damaged_array(draw: Generator, array: Any) -> tuple[bytes, str]:
    """A file that is like that of the array, and how it differs."""
    content = npy(array)
    lot = draw.random()
    if lot < 0.25:
        return damaged_bytes(draw, content)
    if lot < 0.6:
        return _other_header(draw, content, array)
    values: list[tuple[str, Callable[[], Any]]] = [
        ("NaN", lambda: array * np.nan),
        ("infinity", lambda: array * np.inf),
        ("1e38", lambda: array * 0 + np.float32(1e38)),
        ("double precision", lambda: array.astype(np.float64)),
        ("1e300", lambda: array.astype(np.float64) * 0 + 1e300),
        ("integers", lambda: array.astype(np.int64)),
        ("half precision", lambda: array.astype(np.float16)),
        ("complex", lambda: array.astype(np.complex64)),
        ("booleans", lambda: array > 0),
        ("texts", lambda: array.astype(str)),
        ("bytes", lambda: array.astype("S")),
        ("dates", lambda: array.astype(np.int64).astype("M8[s]")),
        ("big-endian", lambda: array.astype(">f4")),
        ("Fortran order", lambda: np.asfortranarray(array)),
        ("one number", lambda: array.flat[0]),
        ("nothing", lambda: array[:0]),
        ("one dimension less", lambda: array[0]),
        ("one dimension more", lambda: array[None]),
        ("sixty dimensions", lambda: array.reshape((1,) * (32 - array.ndim) + array.shape)),
        ("one more", lambda: np.concatenate([array, array[:1]])),
        ("a megabyte", lambda: np.zeros(2**18, np.float32)),
        ("a structure", lambda: np.zeros(3, [("a", "f4")])),
    ]
    how, make = values[draw.integers(len(values))]
    return npy(make()), how


def npy(array: Any) -> bytes:
    """What `np.save` writes."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _other_header(draw: Generator, content: bytes, array: Any) -> tuple[bytes, str]:
    data = content[128:]
    shape = SHAPES[draw.integers(len(SHAPES))] if draw.random() < 0.5 else str(array.shape)
    kind = TYPES[draw.integers(len(TYPES))] if draw.random() < 0.5 else "'<f4'"
    headers = [
        f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}",
        f"{{'descr': {kind}, 'fortran_order': 3, 'shape': {shape}, }}",
        f"{{'descr': {kind}, 'shape': {shape}, }}",
        f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, 'more': 1, }}",
        "__import__('os').system('true')",
        "[" * 3000,
        "{" * 200,
        "\x1b[31m",
        "1" * 5000,
    ]
    header = headers[draw.choice(len(headers), p=[0.6, *[0.05] * 8])]
    major = int(draw.choice([1, 1, 1, 1, 2, 3, 9]))
    text = header.encode() + b"\n"
    length = struct.pack("<H" if major == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([major, 0]) + length + text + data, f"header {header[:100]!r} of version {major}"
