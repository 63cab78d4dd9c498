"""Reads an image file, for training, scoring and encoding alike: what a viewer shows becomes 8 bits of grey or colour."""

import warnings
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from starflow.runtime.plain.errors import UsageError, first_line
from starflow.runtime.plain.limits import MOST_PIXELS
from starflow.runtime.plain.regular_file import NotRegularError, open_regular

# What Pillow decodes by itself. Others run programs (EPS) or open sizes and links without end.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
CONVERTED = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # modes of 8 bits or fewer that Pillow converts
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L")
# Where Pillow widens 16 bits of grey to its mode I.
WIDENED = ("PNG", "PPM")
# TIFF's tags of 16-bit grey that is black at 0.
PLAIN_GREY: dict[int, tuple[object, ...]] = {258: ((16,), 16), 262: (1, (1,)), 339: (None, 1, (1,))}


def read_image(path: Path, mode: Literal["L", "RGB"], size: tuple[int, int] | None = None) -> Image.Image:
    """Read an image file.

    16 bits become 8 by rounding (colour: by its upper 8 bits, as Pillow decodes it), transparency is laid on black, a palette
    and CMYK become colours, and the image is turned as its EXIF orientation says. Of an animation the first picture counts.

    Args:
        path: A file of one of `FORMATS`.
        mode: `L` (grey) or `RGB`, which other modes are converted to.
        size: Width and height it must have; another size is refused before anything is decoded.

    Raises:
        UsageError: there is no such file; it is no image, damaged, too large, of another size, or in a mode that has no one
            meaning in 8 bits.
    """
    try:
        with open_regular(path) as file:
            return decode_image(file, path, mode, size)
    except FileNotFoundError:
        raise UsageError(f"{path}: does not exist; name an image file") from None
    except NotRegularError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read as an image: {first_line(error)}") from error


def decode_image(
    file: BinaryIO, name: Path | str, mode: Literal["L", "RGB"], size: tuple[int, int] | None = None
) -> Image.Image:
    """Read an image from an open file, as `read_image` does; `name` is what errors call it.

    Raises:
        UsageError: see `read_image`.
    """
    try:
        _opened(file).verify()  # compares a PNG's checksums, which reading does not
        file.seek(0)
        image = _opened(file)
        if image.width * image.height > MOST_PIXELS:
            raise Image.DecompressionBombError
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        found = image.size[::-1] if turned else image.size
        if size not in (None, found):
            raise UsageError(f"{name}: is {found[0]}x{found[1]}, this bundle makes {size[0]}x{size[1]}; scale it first")
        upright = ImageOps.exif_transpose(_eight_bits(name, image))
        return _on_black(upright).convert(mode)
    except (UsageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UsageError(f"{name}: is not an image, or damaged; expected {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise UsageError(f"{name}: has more than {MOST_PIXELS:,} pixels; scale it down first") from None
    except Exception as error:  # Pillow reports damage by a dozen types
        raise UsageError(f"{name}: cannot be read as an image: {first_line(error)}") from error


def _opened(file: BinaryIO) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        return Image.open(file, formats=FORMATS)


def _eight_bits(name: Path | str, image: Image.Image) -> Image.Image:
    """The image in a mode of 8 bits or fewer, with its EXIF data."""
    if image.mode in CONVERTED:
        image.load()
        return image
    sixteen = image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in WIDENED)
    tags: Any = getattr(image, "tag_v2", None)
    if not sixteen or (tags and any(tags.get(tag) not in values for tag, values in PLAIN_GREY.items())):
        raise UsageError(f"{name}: holds pixels of mode {image.mode}; save it as 8-bit grey or RGB first")
    values: NDArray[np.int32] = np.asarray(image).astype(np.int32)
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")  # a PNG's one invisible value
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    grey.getexif().update(image.getexif())
    return grey


def _on_black(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
