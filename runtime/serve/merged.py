"""Images of several orders in one call of a sampler."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.family import OnBlock, OnPasses
from starflow.runtime.sampler import Sampler
from starflow.runtime.serve.order import Order


class AbandonedError(Exception):
    """Nobody waits for the images of a batch any more."""


def generate_merged(
    sampler: Sampler,
    images: Sequence[tuple[Order, int]],
    *,
    on_block: OnBlock | None = None,
    on_passes: OnPasses | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """The data of images, each an order and the number of the image in it; all orders are of one kind.

    An image depends on its own seed, condition and guidance only, so merging changes none. (With a decode plan that iterates to
    a tolerance this holds up to the tolerance, and with several batch sizes up to rounding.)

    Args:
        on_block, on_passes, progress: See `Sampler.generate`.

    Raises:
        StarflowError: one of the orders fails; which one, it does not say.
    """
    return sampler.generate(
        np.concatenate([sampler.noise(1, [order.seeds[i]], order.temperature) for order, i in images]),
        _conditions(images),
        guidance=[order.guidance[i] for order, i in images],
        denoise=images[0][0].denoise,
        on_block=on_block,
        on_passes=on_passes,
        progress=progress,
    )


def _conditions(images: Sequence[tuple[Order, int]]) -> list[Any] | NDArray | None:
    """The conditions of the images of a batch, as `Sampler.generate` takes them."""
    found = [order.condition[i] for order, i in images if order.condition is not None]
    if not found:
        return None
    return np.stack(found) if isinstance(found[0], np.ndarray) else found
