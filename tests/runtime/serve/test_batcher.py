"""The queue that merges orders into batches: who waits, who shares a batch, and that no image changes by it."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.runtime import Guidance, Sampler, SamplerPool
from starflow.runtime.plain.errors import StarflowError, UsageError
from starflow.runtime.serve.batcher import Batcher, BatchReport, ClosedError, QueueFullError
from starflow.runtime.serve.order import OnPreview, Order

PATIENT = 0.3  # seconds; long enough for orders of one test to meet


def order(labels: list[int], seed: int = 0, weight: float = 0.0, **options) -> Order:
    guidance = (Guidance(weight),) * len(labels)
    return Order(labels, tuple(range(seed, seed + len(labels))), guidance, **options)


class Watched:
    """A batcher on the tiny bundle (batch 2) and what it reports; `gate` holds back batches while it is closed."""

    def __init__(self, path: Path, size: int = 1, max_waiting: int = 16, patience: float = PATIENT) -> None:
        self.reports: list[BatchReport] = []
        self.batcher = Batcher(
            SamplerPool.open(path, size=size, threads=1),
            max_waiting=max_waiting,
            patience=patience,
            on_batch=self.reports.append,
        )


@pytest.fixture
def watched(tiny_bundle: Path) -> Iterator[Watched]:
    made = Watched(tiny_bundle)
    yield made
    made.batcher.close()


@pytest.fixture(scope="module")
def alone(tiny_bundle: Path) -> Iterator[Sampler]:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        yield sampler


def expected(sampler: Sampler, wanted: Order) -> NDArray:
    rows = [
        sampler.sample([label], seed=[seed], guidance=each, temperature=wanted.temperature)
        for label, seed, each in zip(wanted.condition or [], wanted.seeds, wanted.guidance, strict=True)
    ]
    return np.concatenate(rows)


def test_orders_share_batches_and_keep_their_images(watched: Watched, alone: Sampler) -> None:
    orders = [order([1], 5, 2.0), order([2, 3, 4], 6, 1.0), order([5], 9, temperature=0.7), order([6], 1, 0.5)]
    tickets = [watched.batcher.submit(each) for each in orders]
    for ticket, each in zip(tickets, orders, strict=True):
        assert np.array_equal(ticket.future.result(60), expected(alone, each))
    assert [report.images for report in watched.reports] == [2, 2, 2]
    assert all(report.size == 2 and len(report.waited) == report.images for report in watched.reports)


def test_orders_of_other_kinds_do_not_share(watched: Watched, alone: Sampler) -> None:
    labelled, plain = order([1], 5), Order(None, (5,), (Guidance(),))
    latent = order([2], 5, output="latents")
    tickets = [watched.batcher.submit(each) for each in (labelled, plain, latent)]
    found = [ticket.future.result(60) for ticket in tickets]
    assert sorted(report.images for report in watched.reports) == [1, 2]  # labels together, the null class alone
    assert np.array_equal(found[0], alone.sample([1], seed=[5]))
    assert np.array_equal(found[1], alone.sample(seed=[5]))
    assert np.array_equal(found[2], alone.generate(alone.noise(1, [5]), [2]))


def test_a_batch_that_is_full_does_not_wait(tiny_bundle: Path) -> None:
    made = Watched(tiny_bundle, patience=60.0)
    tickets = [made.batcher.submit(order([label])) for label in (1, 2)]
    assert all(len(ticket.future.result(30)) == 1 for ticket in tickets)
    made.batcher.close()


def test_clients_that_ask_again_come_back_into_one_batch(tiny_bundle: Path) -> None:
    made = Watched(tiny_bundle, patience=0.0)
    made.batcher._crowd, made.batcher._return = 2, time.monotonic() + 60.0  # as after a batch of two that took minutes
    first = made.batcher.submit(order([1]))
    time.sleep(0.1)
    assert not first.future.done() and made.batcher.waiting == 1
    second = made.batcher.submit(order([2]))
    assert len(first.future.result(30)) == len(second.future.result(30)) == 1
    assert [report.images for report in made.reports] == [2]
    assert made.batcher._crowd == 2 and made.batcher._return > time.monotonic() - 60.0
    made.batcher.close()


def test_a_full_queue_says_when_to_come_back(tiny_bundle: Path) -> None:
    made = Watched(tiny_bundle, max_waiting=3, patience=60.0)
    first = made.batcher.submit(order([1]))
    with pytest.raises(QueueFullError, match="1 images are waiting") as error:
        made.batcher.submit(order([1, 2, 3]))
    assert error.value.retry_after >= 1 and made.batcher.waiting == 1
    with pytest.raises(UsageError, match="4 images in one request; ask for at most 3"):
        made.batcher.submit(order([1, 2, 3, 4]))
    first.cancel()
    assert made.batcher.waiting == 0  # the place is free at once
    made.batcher.close()


def test_what_does_not_fit_is_refused_before_it_waits(watched: Watched) -> None:
    for wrong, message in (
        (order([10]), "label 10 is not a class"),
        (Order([1, 2], (0,), (Guidance(),)), "2 labels for 1 images"),
        (Order(["a cat"], (0,), (Guidance(),)), "label 'a cat' is not a class"),
        (order([1], denoise="score"), "denoise 'score'"),
    ):
        with pytest.raises(UsageError, match=message):
            watched.batcher.submit(wrong)


def test_a_batch_nobody_waits_for_ends_at_its_next_report(tiny_bundle: Path) -> None:
    made = Watched(tiny_bundle, patience=0.0)
    seen = threading.Event()
    release = threading.Event()

    def preview(image: int, block: int, pixels: NDArray) -> None:
        seen.set()
        release.wait(30)

    ticket = made.batcher.submit(order([1]), preview)
    assert seen.wait(30)
    ticket.cancel()
    release.set()
    with pytest.raises(CancelledError):
        ticket.future.result()
    after = made.batcher.submit(order([2]))
    assert after.future.result(30).shape == (1, 8, 8, 1)
    made.batcher.close()
    assert len(made.reports) == 1, "the first batch was not finished"


def test_previews_are_made_after_the_chosen_blocks_only(watched: Watched) -> None:
    seen: list[tuple[str, int, int]] = []

    def shown(name: str) -> OnPreview:
        return lambda image, block, pixels: seen.append((name, image, block))

    chosen = order([1], 5, preview_blocks=frozenset({1}))
    tickets = [watched.batcher.submit(chosen, shown("one")), watched.batcher.submit(order([2]), shown("all"))]
    assert all(len(ticket.future.result(60)) == 1 for ticket in tickets)
    assert seen == [("one", 0, 1), ("all", 0, 1), ("all", 0, 0)]


def test_an_order_that_breaks_the_model_harms_no_other(watched: Watched, alone: Sampler) -> None:
    fine, broken = order([1], 5, 2.0), order([2], 6, 3e38)
    tickets = [watched.batcher.submit(each) for each in (fine, broken)]
    assert np.array_equal(tickets[0].future.result(60), expected(alone, fine))
    with pytest.raises(StarflowError, match="NaN or infinity"):
        tickets[1].future.result(60)
    assert np.array_equal(watched.batcher.submit(fine).future.result(60), expected(alone, fine))


def test_closing_finishes_what_was_ordered(tiny_bundle: Path) -> None:
    made = Watched(tiny_bundle, size=2, patience=60.0)
    tickets = [made.batcher.submit(order([label])) for label in range(5)]
    made.batcher.close()
    assert all(ticket.future.done() and len(ticket.future.result()) == 1 for ticket in tickets)
    with pytest.raises(ClosedError):
        made.batcher.submit(order([1]))
    made.batcher.close()


def test_closing_in_a_hurry_gives_up_what_is_not_done(tiny_bundle: Path) -> None:
    made = Watched(tiny_bundle, patience=0.0)
    tickets = [made.batcher.submit(order([1, 2, 3, 4, 5, 6]), lambda *_: time.sleep(0.2)) for _ in range(2)]
    start = time.monotonic()
    made.batcher.close(timeout=0.1)
    assert time.monotonic() - start < 20 and all(ticket.future.done() for ticket in tickets)
    assert any(ticket.future.cancelled() for ticket in tickets)
