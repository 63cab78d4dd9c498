"""How many threads a flow block's operators should use, measured.

A large step is bound by memory, which one core alone cannot exhaust. A small one is over sooner than threads have shared it
out: it is faster on one. Where the line runs depends on the machine and on what else it does, so both are tried.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from starflow.runtime.backends.block_runner import BlockRunner

# Beyond this, one thread never won, and loading the weights twice would take longer than it could save.
LARGE_WEIGHTS = 64 << 20
ROUNDS, STEPS = 5, 6

Runner = TypeVar("Runner", bound=BlockRunner)


def thread_counts(requested: int, weight_bytes: int) -> tuple[int, ...]:
    """Numbers of threads worth trying for a block that reads `weight_bytes` a step; `requested` 0 means any."""
    cores = len(os.sched_getaffinity(0))
    if requested:
        return (requested,)
    return (cores,) if weight_bytes > LARGE_WEIGHTS or cores == 1 else (1, cores)


def fastest_runner(open_runner: Callable[[int], Runner], counts: Sequence[int]) -> Runner:
    """The runner that decodes token by token in the least time.

    Runners take turns, so a disturbance meets them alike, and the best round of each counts.

    Args:
        open_runner: Opens one with so many threads.
        counts: What to choose from; a single one is taken as it is.
    """
    if len(counts) == 1:
        return open_runner(counts[0])
    runners = [open_runner(count) for count in counts]
    best = [float("inf")] * len(runners)
    for _ in range(ROUNDS):
        for index, runner in enumerate(runners):
            best[index] = min(best[index], _seconds(runner))
    chosen = runners[best.index(min(best))]
    chosen.clear()
    return chosen


def _seconds(runner: BlockRunner) -> float:
    """Time of some steps from the middle of the sequence on, after one that wakes the threads."""
    block = runner.block
    middle = block.prefix + (block.capacity - block.prefix) // 2
    steps = min(STEPS, block.capacity - middle - 1)
    runner.seek(middle)
    runner.advance(1)
    start = time.perf_counter()
    runner.advance(steps)
    return (time.perf_counter() - start) / max(steps, 1)
