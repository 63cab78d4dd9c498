"""Model arrays to pictures: the one place where [-1, 1] becomes 0..255. No torch."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.errors import UsageError


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
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * (height + padding), columns * (width + padding), channels), np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + padding), index % columns * (width + padding)
        sheet[top : top + height, left : left + width] = image
    return np.ascontiguousarray(sheet[: sheet.shape[0] - padding, : sheet.shape[1] - padding])


def write_png(path: str | os.PathLike[str], image: NDArray[np.uint8]) -> None:
    """Write one image, uint8 [H, W, 1] (grey) or [H, W, 3]; the file appears whole or not at all."""
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise UsageError(f"{path}: found an image of shape {image.shape}, expected [H, W, 1] or [H, W, 3]")
    with atomic_file(path) as temporary:
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(temporary, format="png")


def read_images(paths: Sequence[Path], mode: str, height: int, width: int) -> NDArray[np.uint8]:
    """Read image files.

    Args:
        paths: Files of any format Pillow reads; transparency is laid on black.
        mode: `L` (grey) or `RGB`, which other modes are converted to.
        height, width: The size they must have; nothing is scaled or cut.

    Returns:
        uint8 [N, H, W, C].

    Raises:
        UsageError: a file cannot be read, is no image, or has another size.
    """
    images = []
    for path in paths:
        try:
            with Image.open(path) as file:
                image = file.convert("RGBA") if file.has_transparency_data else file.copy()
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            reason = "is not an image" if path.exists() and path.is_file() else "does not exist"
            raise UsageError(f"{path}: {reason} ({type(error).__name__})") from None
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        if image.size != (width, height):
            raise UsageError(
                f"{path}: is {image.width}x{image.height}, this bundle makes {width}x{height}; scale it first"
            )
        images.append(np.asarray(image.convert(mode)).reshape(height, width, -1))
    return np.stack(images)
