"""Any number of images in batches of the size a bundle was exported for."""

import numpy as np
from numpy.typing import NDArray


def batches(count: int, size: int) -> list[tuple[slice, NDArray]]:
    """Where each batch of `count` images belongs, and which images are in it.

    The last batch is padded with copies of the last image; the caller cuts what it makes of them to the slice's length.
    """
    return [
        (slice(start, min(start + size, count)), np.minimum(np.arange(start, start + size), count - 1))
        for start in range(0, count, size)
    ]
