"""The number of threads of a flow block: the faster choice is taken, and either gives the same samples."""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from starflow.runtime.backends.block_runner import BlockRunner
from starflow.runtime.backends.onnxruntime.block_runner import HostBlockRunner
from starflow.runtime.backends.onnxruntime.session import open_session
from starflow.runtime.backends.onnxruntime.thread_choice import LARGE_WEIGHTS, fastest_runner, thread_counts
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.sampler import Sampler

CORES = len(os.sched_getaffinity(0))


class Clock:
    """Shows the time that runners have spent, whatever else the machine does."""

    seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds


class TimedRunner(BlockRunner):
    """A runner whose steps take a given time, and whose first one takes longer."""

    def __init__(self, bundle: Bundle, seconds: float, clock: Clock) -> None:
        block = bundle.autoregressive.blocks[0]
        super().__init__(block, bundle.manifest.variants[0].graphs[0], 1)
        self.seconds, self.cleared, self.furthest, self._at = seconds, 0, 0, 0
        self._clock, self._waking = clock, 1.0

    def store(self, name: str, value: ArrayLike, count: int = 1) -> None: ...

    def fetch(self, name: str, count: int = 1) -> NDArray:
        raise NotImplementedError

    def run(self, count: int) -> None: ...

    def seek(self, position: int) -> None:
        self._at = position

    def tell(self) -> int:
        return self._at

    def advance(self, steps: int) -> None:
        self._clock.seconds += self.seconds * steps + self._waking
        self._waking = 0.0
        self._at += steps
        self.furthest = max(self.furthest, self._at)

    def clear(self) -> None:
        self.cleared += 1


@pytest.mark.parametrize("faster", [1, 2])
def test_the_faster_runner_is_taken(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, faster: int) -> None:
    bundle, clock = Bundle.open(tiny_bundle), Clock()
    monkeypatch.setattr("starflow.runtime.backends.onnxruntime.thread_choice.time", clock)
    runners = {threads: TimedRunner(bundle, 0.5 if threads == faster else 0.6, clock) for threads in (1, 2)}
    chosen = fastest_runner(runners.__getitem__, (1, 2))
    assert chosen is runners[faster]
    assert 0 < chosen.furthest <= chosen.block.capacity


class SharedCores(TimedRunner):
    """A runner on busy cores: one round in three finds them free, and is fast."""

    rounds = 0

    def advance(self, steps: int) -> None:
        self.rounds += steps > 1
        usual, self.seconds = self.seconds, 0.1 if self.rounds % 3 == 1 else self.seconds
        super().advance(steps)
        self.seconds = usual


@pytest.mark.parametrize(("other", "expected"), [(0.9, 1), (0.4, 2)])
def test_a_lucky_round_does_not_decide(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, other: float, expected: int
) -> None:
    bundle, clock = Bundle.open(tiny_bundle), Clock()
    monkeypatch.setattr("starflow.runtime.backends.onnxruntime.thread_choice.time", clock)
    runners = {1: TimedRunner(bundle, 0.5, clock), 2: SharedCores(bundle, other, clock)}
    assert fastest_runner(runners.__getitem__, (1, 2)) is runners[expected]


@pytest.mark.parametrize(("two", "expected"), [(0.49, 1), (0.45, 2)])
def test_more_threads_have_to_show_a_gain(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, two: float, expected: int
) -> None:
    bundle, clock = Bundle.open(tiny_bundle), Clock()
    monkeypatch.setattr("starflow.runtime.backends.onnxruntime.thread_choice.time", clock)
    runners = {1: TimedRunner(bundle, 0.5, clock), 2: TimedRunner(bundle, two, clock)}
    assert fastest_runner(runners.__getitem__, (1, 2)) is runners[expected]


def test_large_weights_are_not_loaded_twice() -> None:
    assert thread_counts(3, 1) == (3,)
    assert thread_counts(0, LARGE_WEIGHTS + 1) == (CORES,)
    assert thread_counts(0, LARGE_WEIGHTS) == ((1, CORES) if CORES > 1 else (1,))


@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
def test_samples_do_not_depend_on_it(tiny_bundle: Path, variant: str) -> None:
    found = []
    for threads in (0, 1, 2):
        with Sampler.open(tiny_bundle, variant=variant, threads=threads, plan="sequential") as sampler:
            found.append(sampler.generate(sampler.noise(3), [1, 2, 3], guidance=1.0))
            runner = sampler.backend.block_runner(0)
            assert isinstance(runner, HostBlockRunner)
            used = runner.session.get_session_options().intra_op_num_threads
            assert used == threads or (threads == 0 and used in (1, CORES))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


@pytest.mark.parametrize(("weight_bytes", "spin"), [(1, "300"), (LARGE_WEIGHTS, "300"), (LARGE_WEIGHTS + 1, "1000")])
def test_workers_of_small_graphs_sleep_sooner(tiny_bundle: Path, weight_bytes: int, spin: str) -> None:
    bundle = Bundle.open(tiny_bundle)
    graph = bundle.variant("cpu-fp32", "cpu").graphs[0].model_copy(update={"weight_bytes": weight_bytes})
    options = open_session(bundle, graph, "cpu", 2).get_session_options()
    assert options.get_session_config_entry("session.intra_op.spin_duration_us") == spin
