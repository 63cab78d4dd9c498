"""Model arrays to pictures: the one place where [-1, 1] becomes 0..255. No torch."""

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.image_file import read_image


def to_uint8(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round images from [-1, 1] to 0..255, clipping what lies outside.

    Args:
        x: float32 [N, C, H, W], the inverse of `pixel / 127.5 - 1`.

    Returns:
        uint8 [N, H, W, C].
    """
    pixels = np.clip(np.rint((x + 1.0) * 127.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def grid(images: NDArray[np.uint8], columns: int | None = None, padding: int = 2) -> NDArray[np.uint8]:
    """Lay images out row by row on a black sheet.

    Args:
        images: uint8 [N, H, W, C].
        columns: Images in a row; as near a square as possible when None.
        padding: Black pixels between images.

    Returns:
        uint8 [rows * (H + padding) - padding, columns * (W + padding) - padding, C].
    """
    count, height, width, channels = images.shape
    if count == 0:
        raise UsageError("a grid needs at least one image, found none")
    if columns is not None and columns < 1:
        raise UsageError(f"{columns} columns: give a number of at least 1")
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * (height + padding), columns * (width + padding), channels), np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + padding), index % columns * (width + padding)
        sheet[top : top + height, left : left + width] = image
    return np.ascontiguousarray(sheet[: sheet.shape[0] - padding, : sheet.shape[1] - padding])


def picture(image: NDArray[np.uint8]) -> Image.Image:
    """An image, uint8 [H, W, 1] (grey) or [H, W, 3], as Pillow has it."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """A PNG file of one image, uint8 [H, W, 1] (grey) or [H, W, 3]."""
    file = io.BytesIO()
    picture(image).save(file, "png")
    return file.getvalue()


def write_png(path: str | os.PathLike[str], image: NDArray[np.uint8]) -> None:
    """Write one image, uint8 [H, W, 1] (grey) or [H, W, 3]; the file appears whole or not at all."""
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise UsageError(f"{path}: found an image of shape {image.shape}, expected [H, W, 1] or [H, W, 3]")
    with atomic_file(path) as temporary:
        temporary.write_bytes(png_bytes(image))


def read_images(paths: Sequence[Path], mode: Literal["L", "RGB"], height: int, width: int) -> NDArray[np.uint8]:
    """Read image files.

    Args:
        paths, mode: See `read_image`.
        height, width: The size they must have; nothing is scaled or cut.

    Returns:
        uint8 [N, H, W, C].

    Raises:
        UsageError: a file cannot be read, see `read_image`.
    """
    images = [np.asarray(read_image(path, mode, (width, height))).reshape(height, width, -1) for path in paths]
    return np.stack(images)
