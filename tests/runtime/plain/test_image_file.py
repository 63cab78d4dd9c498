"""Images in files are what a viewer shows, in 8 bits: compared with arrays and files written by hand."""

import struct
import warnings
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.image_file import read_image
from starflow.runtime.plain.limits import MOST_PIXELS
from tests.flipped_bits import read_flipped

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(path: Path, values: NDArray, kind: int, *extra: bytes, depth: int | None = None) -> Path:
    """A PNG of values [H, W] or [H, W, C], uint8 or uint16, by the specification alone."""
    height, width = values.shape[:2]
    depth = depth or 8 * values.itemsize
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in values)
    parts = chunk(b"IHDR", head), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def tiff(
    path: Path,
    values: NDArray,
    *,
    order: Literal["<", ">"] = "<",
    white_is_zero: bool = False,
    bits: int = 16,
    form: int = 1,
) -> Path:
    """An uncompressed grey TIFF of values [H, W], by the specification alone."""
    height, width = values.shape
    content = values.astype(values.dtype.newbyteorder(order)).tobytes()
    short, long = 3, 4
    tags = [
        *((256, long, width), (257, long, height), (258, short, bits), (259, short, 1)),
        *((262, short, 0 if white_is_zero else 1), (273, long, 8), (277, short, 1), (278, long, height)),
        *((279, long, len(content)), (339, short, form)),
    ]
    directory = struct.pack(f"{order}H", len(tags))
    for tag, kind, value in tags:
        number = struct.pack(f"{order}HH", value, 0) if kind == short else struct.pack(f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, kind, 1) + number
    start = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(start + struct.pack(f"{order}I", 8 + len(content)) + content + directory + bytes(4))
    return path


def pixels(path: Path, mode: str = "L") -> NDArray[np.uint8]:
    return np.asarray(read_image(path, mode))  # type: ignore[arg-type]


def rounded(values: NDArray) -> NDArray[np.uint8]:
    """16 bits to 8: 65535 is 255."""
    return np.rint(values / 257).astype(np.uint8)


EVERY_VALUE = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)


def test_sixteen_bits_of_grey(tmp_path: Path) -> None:
    expected = rounded(EVERY_VALUE)
    assert expected.min() == 0 and expected.max() == 255 and len(np.unique(expected)) == 256
    assert np.array_equal(pixels(png(tmp_path / "a.png", EVERY_VALUE, GREY)), expected)
    assert np.array_equal(pixels(tiff(tmp_path / "a.tiff", EVERY_VALUE, order="<")), expected)
    assert np.array_equal(pixels(tiff(tmp_path / "a.tiff", EVERY_VALUE, order=">")), expected)
    (tmp_path / "a.pgm").write_bytes(b"P5 256 256 65535\n" + EVERY_VALUE.astype(">u2").tobytes())
    assert np.array_equal(pixels(tmp_path / "a.pgm"), expected)
    colour = pixels(png(tmp_path / "a.png", EVERY_VALUE, GREY), "RGB")
    assert np.array_equal(colour, np.repeat(expected[:, :, None], 3, axis=2))


def test_sixteen_bits_of_colour_are_right_to_less_than_a_level(tmp_path: Path) -> None:
    values = np.stack([EVERY_VALUE, EVERY_VALUE.T, EVERY_VALUE[::-1]], axis=2)
    found = pixels(png(tmp_path / "a.png", values, COLOUR), "RGB")
    assert np.abs(found - values / 257).max() < 1
    made_of_8_bits = (found.astype(np.uint16) * 257).astype(np.uint16)
    assert np.array_equal(pixels(png(tmp_path / "a.png", made_of_8_bits, COLOUR), "RGB"), found)


def test_sixteen_bits_with_a_transparent_value(tmp_path: Path) -> None:
    values = np.array([[0, 30000], [30001, 65535]], np.uint16)
    path = png(tmp_path / "a.png", values, GREY, chunk(b"tRNS", struct.pack(">H", 30000)))
    assert pixels(path).tolist() == [[0, 0], [117, 255]]


def test_fewer_bits(tmp_path: Path) -> None:
    (tmp_path / "a.pbm").write_bytes(b"P4 8 1\n\xa5")  # 1 is black
    assert pixels(tmp_path / "a.pbm").tolist() == [[0, 255, 0, 255, 255, 0, 255, 0]]
    packed = png(tmp_path / "a.png", np.array([[0x1B]], np.uint8), GREY, depth=2)
    packed.write_bytes(packed.read_bytes().replace(struct.pack(">II", 1, 1), struct.pack(">II", 4, 1)))
    content = bytearray(packed.read_bytes())
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    packed.write_bytes(content)
    assert pixels(packed).tolist() == [[0, 85, 170, 255]]


def test_palettes(tmp_path: Path) -> None:
    colours = bytes([255, 0, 0, 0, 255, 0, 10, 20, 30])
    indices = np.array([[0, 1, 2]], np.uint8)
    path = png(tmp_path / "a.png", indices, PALETTE, chunk(b"PLTE", colours))
    assert pixels(path, "RGB").tolist() == [[[255, 0, 0], [0, 255, 0], [10, 20, 30]]]
    path = png(tmp_path / "a.png", indices, PALETTE, chunk(b"PLTE", colours), chunk(b"tRNS", bytes([0, 255, 255])))
    assert pixels(path, "RGB").tolist() == [[[0, 0, 0], [0, 255, 0], [10, 20, 30]]]


def test_transparency_is_laid_on_black(tmp_path: Path) -> None:
    grey = np.array([[[200, 0], [200, 255], [200, 128]]], np.uint8)
    found = pixels(png(tmp_path / "a.png", grey, GREY_ALPHA)).astype(int)
    assert np.abs(found - [[0, 200, 200 * 128 / 255]]).max() <= 1 and found[0, 0] == 0
    colour = np.array([[[10, 200, 30, 0], [10, 200, 30, 255], [10, 200, 30, 128]]], np.uint8)
    found = pixels(png(tmp_path / "a.png", colour, COLOUR_ALPHA), "RGB").astype(int)
    expected = np.array([[[0, 0, 0], [10, 200, 30], [5, 100, 15]]])
    assert np.abs(found - expected).max() <= 1
    wide = (np.array([[[200, 128]]], np.uint16) * 257).astype(np.uint16)
    assert abs(int(pixels(png(tmp_path / "a.png", wide, GREY_ALPHA))[0, 0]) - 100) <= 1


def test_cmyk(tmp_path: Path) -> None:
    """Ink takes light away: (1 - C)(1 - K)."""
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255], [51, 102, 153, 51]]], np.uint8)
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.tiff")
    light = 1 - inks[..., :3] / 255
    expected = 255 * light * (1 - inks[..., 3:] / 255)
    assert np.abs(pixels(tmp_path / "a.tiff", "RGB") - expected).max() <= 1.5


# What stands where in the picture as it is stored, for each EXIF orientation, if ABC / DEF is to be seen.
STORED = {
    1: ["ABC", "DEF"],
    2: ["CBA", "FED"],
    3: ["FED", "CBA"],
    4: ["DEF", "ABC"],
    5: ["AD", "BE", "CF"],
    6: ["CF", "BE", "AD"],
    7: ["FC", "EB", "DA"],
    8: ["DA", "EB", "FC"],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("sixteen_bits", [False, True])
def test_exif_orientation(orientation: int, sixteen_bits: bool, tmp_path: Path) -> None:
    level = {letter: 10 * (index + 1) for index, letter in enumerate("ABCDEF")}
    stored = np.array([[level[letter] for letter in row] for row in STORED[orientation]], np.uint8)
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HHI", orientation, 0, 0)
    values = stored.astype(np.uint16) * 257 if sixteen_bits else stored
    path = png(tmp_path / "a.png", values, GREY, chunk(b"eXIf", exif))
    assert np.asarray(read_image(path, "L", (3, 2))).tolist() == [[10, 20, 30], [40, 50, 60]]
    with pytest.raises(UsageError, match="is 3x2, this bundle makes 2x3"):
        read_image(path, "L", (2, 3))


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda path: Image.new("LAB", (4, 4)).save(path, format="tiff"), "pixels of mode LAB"),
        (lambda path: tiff(path, np.zeros((4, 4), np.float32), bits=32, form=3), "pixels of mode F"),
        (lambda path: tiff(path, np.zeros((4, 4), np.uint32), bits=32), "pixels of mode I"),
        (lambda path: tiff(path, np.zeros((4, 4), np.int16), form=2), "pixels of mode I"),
        (lambda path: tiff(path, np.zeros((4, 4), np.uint16), white_is_zero=True), "pixels of mode I;16"),
    ],
)
def test_pixels_without_one_meaning_in_8_bits_are_refused(make, found: str, tmp_path: Path) -> None:
    make(tmp_path / "a.tiff")
    with pytest.raises(UsageError, match=f"{found}; save it as 8-bit grey or RGB first"):
        read_image(tmp_path / "a.tiff", "L")


def header_of(path: Path, width: int, height: int) -> None:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, GREY, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


@pytest.mark.parametrize("side", [8200, 10_000, 13_500, 100_000, 2_000_000_000])
def test_large_images_are_refused_by_their_header(side: int, tmp_path: Path) -> None:
    header_of(tmp_path / "a.png", side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UsageError, match=f"more than {MOST_PIXELS:,} pixels; scale it down first"):
            read_image(tmp_path / "a.png", "L")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is not an image, or damaged; expected BMP, GIF"),
        (b"hello", "is not an image, or damaged"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
            "is not an image, or damaged",
        ),  # which would run Ghostscript
        (b"<svg/>", "is not an image, or damaged"),
        (b"P5 2 2 255\nabc", "cannot be read as an image"),
        (b"GIF89a", "is not an image, or damaged"),
    ],
)
def test_what_is_no_image(content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UsageError, match=rf"a\.png: {found}") as caught:
        read_image(tmp_path / "a.png", "L")
    assert "\n" not in str(caught.value)


def test_no_flipped_bit_is_more_than_a_line(tmp_path: Path) -> None:
    """PNG has a checksum for each part; what passes is another part's name, or data that no reader needs."""
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    path = png(tmp_path / "a.png", values, GREY)
    for place, found in read_flipped(path, range(8 * path.stat().st_size), pixels, UsageError):
        assert np.array_equal(found, values), place
