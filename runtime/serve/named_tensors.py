"""What a model takes and makes as named tensors: the same for the Open Inference Protocol of `starflow serve` and for Triton."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.serve.order import Order

MOST_GUIDANCE = 1000.0  # far above what makes pictures; the next numbers make NaN of every model
OUTPUTS: dict[str, Literal["images", "latents"]] = {"image": "images", "latent": "latents"}


class TensorSpec(NamedTuple):
    """A tensor of a request or an answer, for N images; -1 stands for N."""

    name: str
    datatype: str  # as the Open Inference Protocol calls it
    shape: tuple[int, ...]


def takes(manifest: Manifest) -> str:
    """What conditions an image: `captions`, `classes`, `features` or `nothing`."""
    kind = manifest.conditioning.kind
    if kind == "features":
        return "captions" if manifest.text else "features"
    return "nothing" if kind == "none" else "classes"


def inputs(manifest: Manifest) -> list[TensorSpec]:
    """The tensors of a request, all of them optional."""
    given = manifest.conditioning
    condition = {
        "captions": [TensorSpec("caption", "BYTES", (-1,))],
        "classes": [TensorSpec("label", "INT64", (-1,))],
    }.get(takes(manifest), [])
    if given.kind == "features":
        condition.append(TensorSpec("condition", "FP32", (-1, given.tokens, given.width)))
    options = (("seed", "INT64", (-1,)), ("guidance", "FP32", (-1,)), ("temperature", "FP32", (1,)))
    return [*condition, *(TensorSpec(*option) for option in options)]


def outputs(manifest: Manifest) -> list[TensorSpec]:
    """The tensors of an answer, the one that is meant if none is named first."""
    latent = TensorSpec("latent", "FP32", (-1, *manifest.model.data_shape))
    if manifest.output != "images":
        return [latent]
    channels, *sides = manifest.output_shape
    return [TensorSpec("image", "UINT8", (-1, *sides, channels)), latent]


def read_order(
    manifest: Manifest, tensors: Mapping[str, NDArray], output: str, *, name: str, most_images: int
) -> Order:
    """The order that a request means.

    Args:
        tensors: By name; text is an array of `str`. One value is for all images, and [N, 1] counts as [N].
        output: Name of the output.
        name: The model's, for messages.
        most_images: Largest number of images of a request.

    Raises:
        UsageError: a tensor is not known, or does not fit the others.
    """
    known = [spec.name for spec in inputs(manifest)]
    for given in tensors:
        if given not in known:
            raise UsageError(f"input {given!r}: {name} takes {', '.join(known)}")
    made = [spec.name for spec in outputs(manifest)]
    if output not in made:
        raise UsageError(f"output {output!r}: {name} makes {', '.join(made)}")
    conditions = [each for each in ("label", "caption", "condition") if each in tensors]
    if len(conditions) > 1:
        raise UsageError(f"inputs {' and '.join(conditions)} exclude each other")
    counting = [tensors[each] for each in (*conditions, "seed", "guidance") if each in tensors]
    count = max((len(values) for values in counting if values.ndim), default=1)
    if count > most_images:
        raise UsageError(f"{count} images in one request; ask for at most {most_images}")
    condition = _each(tensors, conditions[0], count) if conditions else None
    seeds = _each(tensors, "seed", count) if "seed" in tensors else None
    weights = _each(tensors, "guidance", count) if "guidance" in tensors else np.zeros(count)
    if weights.dtype.kind not in "iuf" or (seeds is not None and seeds.dtype.kind not in "iu"):
        raise UsageError("seed is INT64 and guidance FP32")
    return Order(
        condition.tolist() if condition is not None and condition.ndim == 1 else condition,
        chosen_seeds(None, count) if seeds is None else tuple(int(seed) for seed in seeds),
        checked_guidance(weights.tolist()),
        _temperature(tensors, count),
        output=OUTPUTS[output],
    )


def _each(tensors: Mapping[str, NDArray], name: str, count: int) -> NDArray:
    """A tensor with one value for each of N images; one value is for all of them."""
    values = tensors[name]
    if values.ndim == 2 and values.shape[1] == 1 and name != "condition":
        values = values[:, 0]  # Triton's clients send [N, 1] for what it batches
    if not values.ndim or len(values) not in (1, count) or (values.ndim != 1 and name != "condition"):
        raise UsageError(f"input {name} has shape {list(values.shape)} for {count} images")
    return np.repeat(values, count, axis=0) if len(values) == 1 else values


def _temperature(tensors: Mapping[str, NDArray], count: int) -> float:
    if "temperature" not in tensors:
        return 1.0
    found = np.unique(_each(tensors, "temperature", count))
    if len(found) > 1:
        raise UsageError(
            f"input temperature has {len(found)} different values; a request has one for all of its images"
        )
    return float(found[0])


def chosen_seeds(given: int | None, count: int) -> tuple[int, ...]:
    """A seed for each image: consecutive ones from the one that was given, or from a random one."""
    first = secrets.randbits(32) if given is None else given
    return tuple(range(first, first + count))


def checked_guidance(weights: Sequence[float]) -> tuple[Guidance, ...]:
    """Weights as the sampler takes them.

    Raises:
        UsageError: one is negative, or far from any use.
    """
    for weight in weights:
        if weight > MOST_GUIDANCE:
            raise UsageError(f"guidance {weight:g}: give at most {MOST_GUIDANCE:g}")
    return tuple(Guidance(float(weight)) for weight in weights)
