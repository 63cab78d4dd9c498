"""The noise that images are made of."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.normal_numbers import MOST_SEED, normal_numbers
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.memory import check_images


def draw_noise(
    shape: tuple[int, ...], count: int, seed: int | Sequence[int], temperature: float = 1.0, first: int = 0
) -> NDArray[np.float32]:
    """Normal noise [count, *shape], of standard deviation `temperature`; see `Sampler.noise`."""
    if not 0 < temperature < math.inf:
        raise UsageError(f"temperature {temperature} is not a factor of the noise; give a number > 0")
    seeds = _seeds(count, seed, first)
    check_images(count, math.prod(shape))
    numbers = [normal_numbers(*one, math.prod(shape)) for one in seeds]
    return np.stack(numbers).reshape(count, *shape) * np.float32(temperature)


def _seeds(count: int, seed: int | Sequence[int], first: int) -> list[tuple[int, int]]:
    """The seed of each image: that of the set and its number there, counted from `first`; or its own seed and `first`."""
    if count < 1:
        raise UsageError(f"{count} images: give at least one image")
    if first < 0:
        raise UsageError(f"first image {first}: give a number >= 0")
    several = np.ndim(seed) > 0
    seeds = list(seed) if isinstance(seed, Sequence | np.ndarray) else [seed]
    for one in seeds:
        if not isinstance(one, int | np.integer) or not 0 <= one <= MOST_SEED:
            raise UsageError(f"seed {one!r} is not a whole number from 0 to 2^64 - 1")
    if several and len(seeds) != count:
        raise UsageError(f"{len(seeds)} seeds for {count} images; give one number for all images, or one for each")
    if several:
        return [(int(one), first) for one in seeds]
    return [(int(seeds[0]), index) for index in range(first, first + count)]
