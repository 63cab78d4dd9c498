"""What is compared takes turns in one process, so that a machine that slows down slows all of it alike."""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

Lap = Callable[[Hashable], None]
"""Ends a part of the work: its time runs from the lap before. None ends what is not timed."""

Work = Callable[[Lap], object]


@dataclass(frozen=True)
class Times:
    """Seconds of one piece of work, a value for each repetition."""

    whole: list[float] = field(default_factory=list)
    # Between its laps, by what they ended; parts of one name in one repetition add up.
    parts: dict[Hashable, list[float]] = field(default_factory=dict)

    @property
    def milliseconds(self) -> float:
        """The median of the whole."""
        return 1000 * statistics.median(self.whole)

    @property
    def part_milliseconds(self) -> dict[Hashable, float]:
        """The median of each part."""
        return {part: 1000 * statistics.median(seconds) for part, seconds in self.parts.items()}


def spread(seconds: Sequence[float]) -> float:
    """Interquartile range over the median; 0 of a single value."""
    if len(seconds) < 2:
        return 0.0
    low, median, high = statistics.quantiles(seconds, n=4)
    return (high - low) / median


def take_turns(
    works: Sequence[Work],
    repetitions: int,
    *,
    warm_up: bool = True,
    before_round: Callable[[], object] = lambda: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Times]:
    """Run each piece of work `repetitions` times, one after the other in every round.

    Args:
        works: Each is called with a function that ends a part of it, see `Lap`.
        warm_up: Whether a round that is not timed comes first.
    """
    if warm_up:
        for work in works:
            _timed(work)
    times = [Times() for _ in works]
    for repetition in range(repetitions):
        before_round()
        for work, kept in zip(works, times, strict=True):
            whole, parts = _timed(work)
            kept.whole.append(whole)
            for part, seconds in parts.items():
                kept.parts.setdefault(part, []).append(seconds)
        progress(repetition + 1, repetitions)
    return times


def take_turns_for(works: Sequence[Work], seconds: float, rounds: tuple[int, int]) -> list[Times]:
    """Run each piece of work in turns for about `seconds`, after a round that is not timed.

    Short work needs many rounds: on a busy machine, other processes may disturb half of a few.

    Args:
        rounds: The least and the largest number of rounds.
    """
    once = sum(_timed(work)[0] for work in works)
    least, most = rounds
    return take_turns(works, max(least, min(most, math.ceil(seconds / once))), warm_up=False)


def _timed(work: Work) -> tuple[float, dict[Hashable, float]]:
    parts: dict[Hashable, float] = {}
    start = last = time.perf_counter()

    def lap(part: Hashable) -> None:
        nonlocal last
        now = time.perf_counter()
        if part is not None:
            parts[part] = parts.get(part, 0.0) + now - last
        last = time.perf_counter()

    work(lap)
    return time.perf_counter() - start, parts
