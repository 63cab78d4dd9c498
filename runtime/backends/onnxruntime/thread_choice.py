"""Measures how many threads the operators of a flow block should use.

A large step is limited by memory bandwidth, which one core cannot exhaust. A small step ends before threads have divided the work
and is faster on one thread. The limit depends on the machine and its load, so both are measured.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from starflow.runtime.backends.block_runner import BlockRunner

# Above this size one thread was never faster, and loading the weights twice would cost more than it could save.
LARGE_WEIGHTS = 64 << 20
ROUNDS, STEPS = 5, 6

Runner = TypeVar("Runner", bound=BlockRunner)


def thread_counts(requested: int, weight_bytes: int) -> tuple[int, ...]:
    """Numbers of threads to try for a block that reads `weight_bytes` in a step; `requested` 0 means any number."""
    cores = len(os.sched_getaffinity(0))
    if requested:
        return (requested,)
    return (cores,) if weight_bytes > LARGE_WEIGHTS or cores == 1 else (1, cores)


def fastest_runner(open_runner: Callable[[int], Runner], counts: Sequence[int]) -> Runner:
    """The runner that decodes token by token in the least time, by its number of threads.

    Runners take turns, so a disturbance affects all of them, and the best round of each counts.
    """
    runners = [open_runner(count) for count in counts]
    best = [float("inf")] * len(runners)
    for _ in range(ROUNDS):
        for index, runner in enumerate(runners):
            best[index] = min(best[index], _seconds(runner))
    return runners[best.index(min(best))]


def _seconds(runner: BlockRunner) -> float:
    """Time of a step in the middle of the sequence, after a first step that wakes the threads."""
    block = runner.block
    middle = block.prefix + (block.capacity - block.prefix) // 2
    steps = min(STEPS, block.capacity - middle - 1)
    runner.seek(middle)
    runner.advance(1)
    start = time.perf_counter()
    runner.advance(steps)
    return (time.perf_counter() - start) / max(steps, 1)
