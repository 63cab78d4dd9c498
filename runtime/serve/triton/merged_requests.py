"""Requests that Triton merged, answered by one call of a sampler; nothing here needs Triton."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.plain.errors import StarflowError, UsageError
from starflow.runtime.sampler import Sampler
from starflow.runtime.serve.merged import AbandonedError, generate_merged
from starflow.runtime.serve.named_tensors import outputs, read_order
from starflow.runtime.serve.order import Order

Tensors = Mapping[str, NDArray]


class CancelledError(StarflowError):
    """The client took its request back."""


@dataclass(frozen=True)
class MergedRequest:
    """One of the requests.

    Attributes:
        tensors: Inputs by name; text is an array of `bytes`, as Triton hands it over.
        outputs: Names of the outputs that are wanted.
        on_preview: Called after each flow block but the last with the images so far, uint8 [N, H, W, C], and how many flow
            blocks are left; None if nobody looks at previews.
        is_cancelled: Says whether the client took it back.
    """

    tensors: Tensors
    outputs: Sequence[str]
    on_preview: Callable[[NDArray[np.uint8], int], None] | None = None
    is_cancelled: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class _Read:
    """A request that fits the model, and its place among the requests."""

    place: int
    request: MergedRequest
    order: Order


def answer(
    sampler: Sampler, requests: Sequence[MergedRequest], *, name: str, most_images: int
) -> list[Tensors | Exception]:
    """The outputs of each request, or the error that it gets.

    Requests of one kind become one call of `Sampler.generate`. If that fails, each of them runs alone, so that no client answers
    for another one's numbers.

    Args:
        name: The model's, for messages.
        most_images: Largest number of images of all requests together, which is at most that of a batch.
    """
    answers: dict[int, Tensors | Exception] = {}
    read: list[_Read] = []
    for place, request in enumerate(requests):
        try:
            read.append(_Read(place, request, _order(sampler, request, name, most_images)))
        except Exception as error:  # a bug, too, must not take other requests along
            answers[place] = error
    for _, alike in groupby(sorted(read, key=_kind), _kind):
        answers.update(_run(sampler, list(alike)))
    return [answers[place] for place in range(len(requests))]


def _kind(read: _Read) -> str:
    return repr(read.order.kind)


def _order(sampler: Sampler, request: MergedRequest, name: str, most_images: int) -> Order:
    tensors = {each: _texts(each, values) for each, values in request.tensors.items()}
    first = outputs(sampler.manifest)[0].name
    order = read_order(sampler.manifest, tensors, first, name=name, most_images=most_images)
    sampler.check(order.count, order.condition, guidance=order.guidance, denoise=order.denoise)
    return order


def _texts(name: str, values: NDArray) -> NDArray:
    """Text in UTF-8 as an array of `str`; other arrays as they are."""
    if values.dtype != object:
        return values
    try:
        return np.array([text.decode() for text in values.ravel()], object).reshape(values.shape)
    except UnicodeDecodeError:
        raise UsageError(f"input {name}: a string is not UTF-8") from None


def _run(sampler: Sampler, alike: list[_Read]) -> Iterable[tuple[int, Tensors | Exception]]:
    try:
        return _sampled(sampler, alike)
    except AbandonedError:
        return [(read.place, CancelledError("the request was cancelled")) for read in alike]
    except Exception as error:
        if len(alike) == 1 or not isinstance(error, StarflowError):
            return [(read.place, error) for read in alike]
    return [pair for read in alike for pair in _run(sampler, [read])]


def _sampled(sampler: Sampler, alike: list[_Read]) -> list[tuple[int, Tensors | Exception]]:
    images = [(read.order, index) for read in alike for index in range(read.order.count)]
    ends = np.cumsum([read.order.count for read in alike])
    rows = [slice(end - read.order.count, end) for read, end in zip(alike, ends, strict=True)]

    def progress(done: int, total: int) -> None:
        if all(read.request.is_cancelled() for read in alike):
            raise AbandonedError

    def on_block(block: int, data: NDArray) -> None:
        if block:  # after block 0 come the images themselves
            previews = sampler.to_images(data, denoise=alike[0].order.denoise)
            for read, own in zip(alike, rows, strict=True):
                if read.request.on_preview and not read.request.is_cancelled():
                    read.request.on_preview(previews[own], block)

    watched = any(read.request.on_preview for read in alike)
    data = generate_merged(sampler, images, on_block=on_block if watched else None, progress=progress)
    made: dict[str, NDArray] = {"latent": data}
    if any("image" in read.request.outputs for read in alike):
        made["image"] = sampler.to_images(data, denoise=alike[0].order.denoise)
    return [
        (read.place, {name: made[name][own] for name in read.request.outputs if name in made})
        for read, own in zip(alike, rows, strict=True)
    ]
