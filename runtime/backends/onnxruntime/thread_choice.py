"""Measures how many threads the operators of a flow block should use.

A large step is limited by memory bandwidth, which one core cannot exhaust. A small step ends before threads have divided the work
and is faster on one thread. The limit depends on the machine and its load, so both are measured. Where other processes take turns
on the cores, every product waits for its slower half: two threads then take longer than one, with lucky exceptions. So the
medians decide, and further threads have to show a gain.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from starflow.runtime.backends.block_runner import BlockRunner

# Above this size one thread was never faster, and loading the weights twice would cost more than it could save.
LARGE_WEIGHTS = 64 << 20
ROUNDS, STEPS = 9, 6
GAIN = 0.95  # of the time on fewer threads that more of them may take to be chosen

Runner = TypeVar("Runner", bound=BlockRunner)


def thread_counts(requested: int, weight_bytes: int) -> tuple[int, ...]:
    """Numbers of threads to try for a block that reads `weight_bytes` in a step; `requested` 0 means any number."""
    cores = len(os.sched_getaffinity(0))
    if requested:
        return (requested,)
    return (cores,) if weight_bytes > LARGE_WEIGHTS or cores == 1 else (1, cores)


def fastest_runner(open_runner: Callable[[int], Runner], counts: Sequence[int]) -> Runner:
    """The runner that decodes token by token in the least time, by its number of threads.

    Runners take turns, in either order, so a disturbance affects all of them, and the median of each counts. Two probes of one
    machine under one load agree but for ties, which the runner that comes first in `counts` wins.
    """
    runners = [open_runner(count) for count in counts]
    seconds: list[list[float]] = [[] for _ in runners]
    for index in range(ROUNDS):
        turns = list(enumerate(runners))
        for which, runner in turns if index % 2 == 0 else reversed(turns):
            seconds[which].append(_seconds(runner))
    medians = [statistics.median(taken) for taken in seconds]
    chosen = 0
    for which, median in enumerate(medians):
        if median < GAIN * medians[chosen]:
            chosen = which
    return runners[chosen]


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
