"""A set of images, each of which depends on the set and on its own index alone."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.bundle.manifest import ConditioningSpec
from starflow.runtime.conditions import class_labels
from starflow.runtime.networks.denoising import check_rate
from starflow.runtime.noise import draw_noise
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.guidance import Guidance

Condition = NDArray[np.int64] | NDArray[np.float32] | Sequence[str]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """What the images of a set are made from.

    Attributes:
        count: Number of images.
        seed: Image g has the noise of image g of `Sampler.noise` with this seed.
        guidance: Guidance of every image.
        temperature: Standard deviation of the noise.
        condition: Labels [n] int64, n captions, or condition tokens [n, m, width]: image g takes number g modulo n. None for no
            condition.
        null_condition: Null condition tokens; see `Sampler.generate`.
        denoise, denoising_rate: See `Sampler.generate`.

    Raises:
        UsageError: a number is out of its range.
    """

    count: int
    seed: int = 0
    guidance: Guidance = field(default_factory=Guidance)
    temperature: float = 1.0
    condition: Condition | None = None
    null_condition: NDArray | None = None
    denoise: str = "auto"
    denoising_rate: float = 1.0

    def __post_init__(self) -> None:
        for name, number in (("seed", self.seed), ("count", self.count)):
            if number >= 1 << 63:  # shards state them in 64 bits with a sign
                raise UsageError(f"{name} {number}: give a number below 2^63")
        check_rate(self.denoising_rate)
        draw_noise((1,), 1, self.seed, self.temperature, self.count - 1)

    def conditions(self, images: range) -> Condition | None:
        """The conditions of some images, one for each."""
        if self.condition is None:
            return None
        numbers = [image % len(self.condition) for image in images]
        if isinstance(self.condition, np.ndarray):
            return self.condition[numbers]
        return [self.condition[number] for number in numbers]

    def facts(self, image: int) -> dict[str, int | float | str]:
        """What a shard says of an image: index, seed, weight of guidance, and its label or caption if it has one."""
        found: dict[str, int | float | str] = {"index": image, "seed": self.seed, "guidance": self.guidance.weight}
        if isinstance(self.condition, np.ndarray):
            if self.condition.ndim == 1:
                found["label"] = int(self.condition[image % len(self.condition)])
        elif self.condition is not None:
            found["caption"] = self.condition[image % len(self.condition)]
        return found

    @property
    def conditions_digest(self) -> str:
        """SHA-256 of the condition and the null condition."""
        digest = hashlib.sha256()
        for value in (self.condition, self.null_condition):
            if isinstance(value, np.ndarray):
                digest.update(json.dumps([str(value.dtype), value.shape]).encode())
                digest.update(np.ascontiguousarray(value).tobytes())
            else:
                digest.update(json.dumps(value).encode())
        return digest.hexdigest()


def set_condition(spec: ConditioningSpec, given: Any) -> Condition | None:
    """The condition of a set as a user gives it: class names become labels, one condition for all becomes a list.

    Raises:
        UsageError: a label is no class of the model.
    """
    if spec.kind in ("class-token", "class-label") and given is not None and np.ndim(given) < 2:
        labels: NDArray[np.int64] = class_labels(spec, given)
        return labels
    if isinstance(given, np.ndarray):
        tokens: NDArray[np.float32] = np.asarray(given if given.ndim == 3 else given[None], np.float32)
        return tokens
    return None if given is None else list(given)
