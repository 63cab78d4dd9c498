"""A case, noise and conditions from a seed, that several ways of running a bundle are given; and the trace each makes of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import ConditioningSpec
from starflow.runtime.conditions import Conditions, encode_conditions
from starflow.runtime.networks.caption_encoder import encode_once
from starflow.runtime.plain.memory import check_images
from starflow.runtime.sampler import Sampler

CAPTIONS = ("a red apple", "two cats", "a sailboat", "the moon", "a blue car", "snow", "an old tree", "blue")


@dataclass(frozen=True)
class Case:
    """The inputs of N images, a multiple of the bundle's batch."""

    noise: NDArray[np.float32]  # [N, *noise_shape] float32, as `starflow sample --seed` draws it
    condition: NDArray | None  # labels [N] int64, condition tokens [N, m, width] float32, or None
    null_condition: NDArray | None  # null condition tokens [m, width] if the condition is tokens, else None
    guidance: float
    seed: int  # seed of noise and conditions

    def conditions(self, spec: ConditioningSpec) -> Conditions:
        """The conditions as the graphs of a bundle take them."""
        return encode_conditions(spec, len(self.noise), self.condition, self.null_condition, guided=self.guidance > 0)


def draw_case(
    bundle: Bundle,
    images: int | None = None,
    seed: int = 0,
    guidance: float | None = None,
    conditions: Callable[[int], tuple[NDArray | None, NDArray | None]] | None = None,
) -> Case:
    """Draw noise and conditions for whole batches.

    Args:
        images: Smallest number of images; None takes one batch.
        guidance: Guidance weight; None takes 1 if the bundle takes guidance.
        conditions: Returns the conditions and the null condition for a number of images, instead of `usual_conditions`.
    """
    manifest = bundle.manifest
    count = -(-(images or manifest.batch) // manifest.batch) * manifest.batch
    check_images(
        count, math.prod(manifest.model.data_shape), manifest.conditioning.tokens * manifest.conditioning.width
    )
    condition, null = conditions(count) if conditions else usual_conditions(bundle, count, seed)
    weight = guidance if guidance is not None else float(manifest.guided)
    # Any variant draws the same, and none opens a session for it.
    with Sampler.open(bundle, backend="onnxruntime", variant=manifest.variants[0].name) as sampler:
        return Case(sampler.noise(count, seed), condition, null, weight, seed)


def usual_conditions(bundle: Bundle, count: int, seed: int) -> tuple[NDArray | None, NDArray | None]:
    """Conditions of `count` images, and the null condition if conditions are tokens.

    Classes take turns. A bundle with a text encoder gets captions, since a trained model need not be stable far from its
    training data. Other condition tokens are standard normal. So are the null tokens, because zeros would hide swapped rows.
    """
    manifest, spec = bundle.manifest, bundle.manifest.conditioning
    if spec.kind == "none":
        return None, None
    if spec.kind != "features":
        return np.arange(count) % spec.num_classes, None
    if manifest.text:
        features, null = encode_once(bundle, CAPTIONS)
        return features[np.arange(count) % len(CAPTIONS)], null
    generator = np.random.default_rng([seed, count])
    condition = generator.standard_normal((count, spec.tokens, spec.width), np.float32)
    return condition, generator.standard_normal((spec.tokens, spec.width), np.float32)


def nudged(case: Case) -> Case:
    """The same case with every noise value moved to the next float32, which is the smallest possible change."""
    return replace(case, noise=np.nextafter(case.noise, np.float32(np.inf)))


@dataclass(frozen=True)
class Trace:
    """A sample, block by block."""

    # [N, T, D] float32 after each flow block, by index and in block order; NaN and infinity are kept.
    tokens: dict[int, NDArray]


def finite(tokens: NDArray) -> NDArray:
    """The tokens with zeros instead of NaN and infinity, so that later blocks can still be compared."""
    return np.nan_to_num(tokens, nan=0.0, posinf=0.0, neginf=0.0)
