"""What every way of running a bundle is given, to be compared: noise and conditions, drawn from a seed."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.networks.caption_encoder import encode_once
from starflow.runtime.sampler import Sampler

CAPTIONS = ("a red apple", "two cats", "a sailboat", "the moon", "a blue car", "snow", "an old tree", "blue")


@dataclass(frozen=True)
class Case:
    """What is sampled: N images, a multiple of the bundle's batch.

    Attributes:
        noise: [N, *noise_shape] float32, as `starflow sample --seed` draws it.
        condition: Labels [N] int64, condition tokens [N, m, width] float32, or None.
        null_condition: Null condition tokens [m, width], where the condition is tokens.
        guidance: Weight.
        seed: What all of it was drawn from.
    """

    noise: NDArray[np.float32]
    condition: NDArray | None
    null_condition: NDArray | None
    guidance: float
    seed: int


def draw_case(
    bundle: Bundle,
    images: int | None = None,
    seed: int = 0,
    guidance: float | None = None,
    conditions: Callable[[int], tuple[NDArray | None, NDArray | None]] | None = None,
) -> Case:
    """Noise and conditions for at least `images` images (by default one batch), in whole batches.

    Args:
        bundle: The bundle.
        images: Their number.
        seed: Of the noise, and of conditions that are drawn.
        guidance: Weight; None takes 1 where the bundle takes guidance.
        conditions: Gives the conditions and the null condition of so many images, in place of `usual_conditions`.
    """
    manifest = bundle.manifest
    count = -(-(images or manifest.batch) // manifest.batch) * manifest.batch
    condition, null = conditions(count) if conditions else usual_conditions(bundle, count, seed)
    weight = guidance if guidance is not None else float(manifest.guided)
    # Which variant draws does not matter, and no session is made for it.
    with Sampler.open(
        bundle.root, backend="onnxruntime", variant=manifest.variants[0].name, shape=bundle.shape
    ) as sampler:
        return Case(sampler.noise(count, seed), condition, null, weight, seed)


def usual_conditions(bundle: Bundle, count: int, seed: int) -> tuple[NDArray | None, NDArray | None]:
    """Conditions of `count` images, and the null condition where it is tokens.

    Every class occurs in turn. A bundle with a text encoder is given captions: a trained model need not be calm far from
    what it was trained on. Other condition tokens are standard normal, and so are the null tokens, because a null
    condition of zeros would hide an exchange of rows.
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
    """The same case with every noise value moved to the next float32: the smallest disturbance there is."""
    return replace(case, noise=np.nextafter(case.noise, np.float32(np.inf)))
