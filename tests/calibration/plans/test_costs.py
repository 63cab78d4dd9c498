"""Costs from a device whose every operation takes a known time on a clock that only it moves."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from starflow.calibration.plans.convergence import BlockProbe
from starflow.calibration.plans.costs import measure_costs
from starflow.runtime.plans.decode_plan import Chunk


@dataclass
class Device:
    """A runner and its clock: prefill 7 s, a step 1 s, a pass over S tokens 2 + S / 10 s, everything else 0.25 s."""

    now: float = 0.0
    position: int = 0

    def __post_init__(self) -> None:
        self.begun: list[tuple[str, int]] = []
        self.chunks: list[Chunk] = []

    def seek(self, position: int) -> None:
        assert type(position) is int
        self.position, self.now = position, self.now + 0.25

    def fetch(self, what: str) -> None:
        assert what == "previous"
        self.now += 0.25

    def prefill(self, inputs: object) -> None:
        self.begun.append(("prefill", self.position))
        self.now += 7.0

    def advance(self, tokens: int) -> None:
        self.begun.append((f"{tokens} steps", self.position))
        self.now += 1.0 * tokens

    def iterate(self, chunk: Chunk) -> None:
        self.begun.append((f"{chunk.tokens} tokens", self.position))
        self.chunks.append(chunk)
        self.now += chunk.passes * (2 + chunk.tokens / 10)


@dataclass
class Block:
    index: int
    prefix: int
    first_token: int = 0


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    found = Device()
    monkeypatch.setattr(time, "perf_counter", lambda: found.now)
    yield found


def probe(device: Device, tokens: int, prefix: int = 3) -> BlockProbe:
    x: Any = np.ones((2, tokens, 4), np.float32)
    return BlockProbe(device, Block(5, prefix), [object()], x)  # type: ignore[arg-type, list-item]


def test_costs_are_those_of_a_step_and_of_a_pass(device: Device) -> None:
    (cost,) = measure_costs({5: probe(device, 40)}, [1, 2, 10, 40, 41], 3)
    # What waits for the device, 0.25 s, is part of what is timed; going to the place is not.
    assert cost.block == 5
    assert cost.prefill_milliseconds == pytest.approx(7250)
    assert cost.step_milliseconds == pytest.approx((16 + 0.25) / 16 * 1000)
    assert {run.tokens: run.milliseconds for run in cost.runs} == pytest.approx({2: 2262.5, 10: 3062.5, 40: 6062.5})
    assert {chunk.passes for chunk in device.chunks} == {4}
    assert all(chunk.tolerance is None for chunk in device.chunks)


def test_everything_is_timed_in_the_middle_of_the_sequence_and_in_turns(device: Device) -> None:
    measure_costs({0: probe(device, 40), 1: probe(device, 8, prefix=0)}, [4], 2)
    once = [("prefill", 3), ("16 steps", 3 + 12), ("4 tokens", 3 + 18), ("prefill", 0), ("8 steps", 0), ("4 tokens", 2)]
    assert device.begun == 3 * once, "a round that does not count, then two that do"


def test_short_blocks_are_timed_over_all_their_steps(device: Device) -> None:
    (cost,) = measure_costs({0: probe(device, 5)}, [], 1)
    assert cost.step_milliseconds == pytest.approx((5 + 0.25) / 5 * 1000) and cost.runs == ()
