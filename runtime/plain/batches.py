"""Any number of images in batches of the sizes a bundle was exported for."""

import numpy as np
from numpy.typing import NDArray


def batches(count: int, *sizes: int) -> list[tuple[slice, NDArray]]:
    """Where each batch of `count` images belongs, and which images are in it, as many as the batch has places.

    The next batch has the smallest size that holds all images that are left, or the largest size if none does. So only the last
    batch may be padded. It is padded with copies of the last image; the caller cuts what it makes of them to the slice's length.
    """
    found: list[tuple[slice, NDArray]] = []
    start = 0
    while start < count:
        size = min((size for size in sizes if size >= count - start), default=max(sizes))
        found.append((slice(start, min(start + size, count)), np.minimum(np.arange(start, start + size), count - 1)))
        start += size
    return found
