"""Requests that Triton merged: each gets the pixels that it would get alone, or an error of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.runtime import Sampler
from starflow.runtime.plain.errors import NotFiniteError, UsageError
from starflow.runtime.serve.triton.merged_requests import CancelledError, MergedRequest, answer


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Iterator[Sampler]:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        yield sampler


@pytest.fixture(scope="module")
def captioned(captioned_bundle: Path) -> Iterator[Sampler]:
    with Sampler.open(captioned_bundle, threads=1) as sampler:
        yield sampler


def column(values: list[Any], dtype: Any = np.int64) -> NDArray:
    """[N, 1], as Triton hands over what has one value for each image."""
    return np.array(values, dtype)[:, None]


def request(outputs: tuple[str, ...] = ("image",), **given: Any) -> MergedRequest:
    watching = {name: given.pop(name) for name in ("on_preview", "is_cancelled") if name in given}
    kinds = {"label": np.int64, "seed": np.int64, "caption": object}
    tensors = {
        name: values if isinstance(values, np.ndarray) else column(values, kinds.get(name, np.float32))
        for name, values in given.items()
    }
    return MergedRequest(tensors, outputs, **watching)


def answers(sampler: Sampler, *requests: MergedRequest) -> list[Any]:
    return answer(sampler, requests, name="model", most_images=sampler.manifest.batch)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each call of `Sampler.generate`."""
    found: list[int] = []
    generate = Sampler.generate

    def counted(self: Sampler, noise: Any, *rest: Any, **more: Any) -> NDArray:
        found.append(len(noise))
        return generate(self, noise, *rest, **more)

    monkeypatch.setattr(Sampler, "generate", counted)
    return found


def test_requests_become_one_call_and_keep_their_images(tiny: Sampler, calls: list[int]) -> None:
    one = request(label=[3], seed=[70], guidance=[2.0])
    other = request(("image", "latent"), label=[4], seed=[12], temperature=[0.5])
    first, second = answers(tiny, one, other)
    assert calls == [2]
    assert np.array_equal(first["image"], tiny.sample([3], seed=[70], guidance=2.0)) and set(first) == {"image"}
    assert np.array_equal(second["image"], tiny.sample([4], seed=[12], temperature=0.5))
    assert np.array_equal(second["latent"], tiny.generate(tiny.noise(1, [12], 0.5), [4]))


def test_requests_of_several_images_get_their_own_rows(captioned: Sampler) -> None:
    texts, seeds = ["a cat", "zwei Hunde ☃"], [3, 4]
    (found,) = answers(captioned, request(caption=[text.encode() for text in texts], seed=seeds, guidance=[1.5, 0.0]))
    assert np.array_equal(found["image"], captioned.sample(texts, seed=seeds, guidance=[1.5, 0.0]))


def test_requests_with_and_without_a_condition_are_not_mixed(tiny: Sampler, calls: list[int]) -> None:
    labelled, plain = answers(tiny, request(label=[3], seed=[5]), request(seed=[5]))
    assert calls == [1, 1]
    assert np.array_equal(labelled["image"], tiny.sample([3], seed=[5]))
    assert np.array_equal(plain["image"], tiny.sample(seed=[5]))
    assert not np.array_equal(plain["image"], labelled["image"])


def test_without_a_seed_each_image_is_another_one(tiny: Sampler) -> None:
    (found,) = answers(tiny, request(label=[3, 3]))
    assert not np.array_equal(*found["image"])


def test_a_request_that_does_not_fit_harms_no_other(tiny: Sampler, calls: list[int]) -> None:
    wrong, fine = answers(tiny, request(label=[10], seed=[1]), request(label=[1], seed=[1]))
    assert isinstance(wrong, UsageError) and "label 10 is not a class of this model; it has 0 to 9" in str(wrong)
    assert np.array_equal(fine["image"], tiny.sample([1], seed=[1])) and calls[0] == 1


def test_a_request_that_breaks_the_model_harms_no_other(captioned: Sampler, calls: list[int]) -> None:
    tokens = captioned.encode_captions(["a cat"])
    fine, broken = answers(
        captioned, request(condition=tokens, seed=[1]), request(condition=np.full_like(tokens, 3e38), seed=[1])
    )
    assert isinstance(broken, NotFiniteError) and "\n" not in str(broken)
    assert calls[:3] == [2, 1, 1]
    assert np.array_equal(fine["image"], captioned.sample(tokens, seed=[1]))


WRONG: dict[str, tuple[str, MergedRequest]] = {
    "text that is not UTF-8": ("input caption: a string is not UTF-8", request(caption=[b"\xff"])),
    "a long caption": ("expected at most", request(caption=[b"x" * 1_000_000])),
    "NaN": ("condition holds NaN", request(condition=np.full((1, 8, 32), np.nan, np.float32))),
    "two conditions": (
        "inputs caption and condition exclude each other",
        request(caption=[b"a"], condition=np.zeros((1, 8, 32), np.float32)),
    ),
    "a label": ("input 'label': model takes caption, condition, seed", request(label=[1])),
    "NaN guidance": ("guidance nan is not a weight", request(caption=[b"a"], guidance=[np.nan])),
    "huge guidance": ("guidance 1e+30: give at most 1000", request(caption=[b"a"], guidance=[1e30])),
    "a negative seed": ("seed -1 is not a whole number from 0", request(seed=[-1])),
    "temperatures": ("temperature has 2 different values", request(seed=[1, 2], temperature=[0.5, 1.0])),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_get_one_sentence(captioned: Sampler, case: str) -> None:
    message, wrong = WRONG[case]
    (found,) = answers(captioned, wrong)
    assert isinstance(found, UsageError) and message in str(found) and "\n" not in str(found)


def test_previews_come_after_each_flow_block_but_the_last(tiny: Sampler) -> None:
    seen: dict[int, list[tuple[int, NDArray]]] = {3: [], 4: []}
    watched = [
        request(
            label=[label], seed=[9], guidance=[1.0], on_preview=lambda *found, to=seen[label]: to.append(found[::-1])
        )
        for label in seen
    ]
    blocks: dict[int, NDArray] = {}
    tiny.generate(tiny.noise(2, [9, 9]), [3, 4], guidance=1.0, on_block=lambda at, data: blocks.update({at: data + 0}))
    answers(tiny, *watched)
    count = len(blocks)
    for row, label in enumerate(seen):
        assert [left for left, _ in seen[label]] == list(range(count - 1, 0, -1)) and count > 1
        for left, preview in seen[label]:
            assert np.array_equal(preview, tiny.to_images(blocks[left])[[row]])


def test_what_all_clients_took_back_ends_at_its_next_report(tiny: Sampler) -> None:
    seen: list[int] = []

    def preview(images: NDArray, left: int) -> None:
        seen.append(left)

    def cancelled() -> bool:
        return bool(seen)

    gone, stays = (request(label=[3], seed=[9], on_preview=preview, is_cancelled=each) for each in (cancelled, bool))
    (found,) = answers(tiny, gone)
    assert isinstance(found, CancelledError) and len(seen) == 1
    assert np.array_equal(answers(tiny, gone, stays)[1]["image"], tiny.sample([3], seed=[9])), "one client is left"
