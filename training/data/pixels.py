"""An image as the array a model is trained on."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


def pixels_of(image: Image.Image, size: int | None) -> NDArray[np.uint8]:
    """A grey or colour image as uint8 [C, H, W], whose short side is scaled to `size` and whose centre is cropped."""
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
