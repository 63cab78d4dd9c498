"""Image files of every mode and format that Pillow writes, damaged, and made to be larger than they look."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, PngImagePlugin

from tests.attack.byte_damage import damaged_bytes

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")
FORMATS = ("png", "jpeg", "tiff", "gif", "bmp", "webp", "ppm", "tga", "ico", "jpeg2000", "sgi", "pcx")


def damaged_image(draw: Generator, size: tuple[int, int]) -> tuple[bytes, str]:
    """An image file, and how it differs from a grey PNG of that size."""
    pixels = draw.integers(0, 256, (*size[::-1], 4)).astype(np.uint8)
    lot = draw.random()
    if lot < 0.15:
        return _made(draw, pixels)
    while True:
        mode, kind = MODES[draw.integers(len(MODES))], FORMATS[draw.integers(len(FORMATS))]
        content = _saved(pixels, mode, kind)
        if content:
            break
    if lot < 0.5:
        return content, f"{mode} as {kind}"
    changed, note = damaged_bytes(draw, content)
    return changed, f"{mode} as {kind}: {note}"


def honest_image(size: tuple[int, int]) -> bytes:
    """A grey PNG."""
    content = _saved(np.random.default_rng(0).integers(0, 256, (*size[::-1], 4)).astype(np.uint8), "L", "png")
    assert content
    return content


def _saved(pixels: Any, mode: str, kind: str, **options: Any) -> bytes | None:
    file = io.BytesIO()
    try:
        if mode == "I;16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        else:
            image = Image.fromarray(pixels, "RGBA").convert(
                "RGB" if mode in ("CMYK", "YCbCr", "LAB", "HSV") else "RGBA"
            )
            image = Image.new("LAB", image.size, (40, 90, 90)) if mode == "LAB" else image.convert(mode)
        image.save(file, format=kind, **options)
    except (OSError, ValueError, KeyError, SystemError):  # a format that does not hold the mode
        return None
    return file.getvalue()


def _made(draw: Generator, pixels: Any) -> tuple[bytes, str]:
    exif = Image.Exif()
    exif[0x0112] = int(draw.integers(0, 12))
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "x" * 1000, zip=True)
    kinds: list[tuple[str, Callable[[], bytes | None]]] = [
        ("turned by EXIF", lambda: _saved(pixels, "RGB", "jpeg", exif=exif.tobytes())),
        ("with a text", lambda: _saved(pixels, "L", "png", pnginfo=info)),
        ("a PNG of 30,000 x 30,000", lambda: _png(30_000, 30_000, zlib.compress(bytes(2**20)))),
        ("a PNG of 9,000 x 9,000, whole", lambda: _png(9_000, 9_000, zlib.compress(bytes(9_000 * 9_001)))),
        ("a PNG of 2^31 x 2^31", lambda: _png(2**31 - 1, 2**31 - 1, zlib.compress(b""))),
        ("a PNG of no size", lambda: _png(0, 0, zlib.compress(b""))),
        ("a PNG with a text of 64 MiB packed", lambda: _png(8, 8, zlib.compress(bytes(72)), _text(2**26))),
        ("an image of another size", lambda: _saved(np.zeros((9, 7, 4), np.uint8), "L", "png")),
        ("no image", lambda: b"no image"),
        ("empty", lambda: b""),
        (
            "an EPS file",
            lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%true) (w) file\n",
        ),
        ("an SVG file", lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>'),
        ("a PDF file", lambda: b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n"),
    ]
    how, make = kinds[draw.integers(len(kinds))]
    return make() or b"", how


def _png(width: int, height: int, data: bytes, more: bytes = b"") -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _text(size: int) -> bytes:
    return _chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(size)))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
