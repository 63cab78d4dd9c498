"""What a pass over several tokens costs on this backend, next to a single step."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from starflow.calibration.plans.convergence import BlockProbe
from starflow.runtime.plans.calibrated_decode_plan import BlockCost, RunCost
from starflow.runtime.plans.decode_plan import Chunk

STEPS = 16  # single steps timed together
PASSES = 4  # passes timed together


def measure_costs(probes: Mapping[int, BlockProbe], widths: Sequence[int], repetitions: int) -> tuple[BlockCost, ...]:
    """Time single steps and passes of every width in every flow block: interleaved, medians.

    What is timed is what decoding does: getting inputs to a pass and outputs from it counts.
    """
    timers = [_Timer(probe, [width for width in widths if 1 < width <= probe.count]) for probe in probes.values()]
    for timer in timers:
        timer.round()  # allocates
        timer.clear()
    for _ in range(repetitions):
        for timer in timers:
            timer.round()
    return tuple(timer.cost() for timer in timers)


class _Timer:
    """Times one flow block; a round times everything once."""

    def __init__(self, probe: BlockProbe, widths: Sequence[int]) -> None:
        self._probe, self._widths = probe, widths
        self.clear()

    def clear(self) -> None:
        self._prefill: list[float] = []
        self._steps: list[float] = []
        self._passes: dict[int, list[float]] = {width: [] for width in self._widths}

    def round(self) -> None:
        runner, count = self._probe.runner, self._probe.count
        steps = min(STEPS, count)
        self._prefill.append(self._seconds(count, lambda: runner.prefill(self._probe.inputs[0])))
        self._steps.append(self._seconds(steps, lambda: runner.advance(steps)) / steps)
        for width, times in self._passes.items():
            chunk = Chunk(tokens=width, passes=PASSES)
            times.append(self._seconds(width, partial(runner.iterate, chunk)) / PASSES)

    def cost(self) -> BlockCost:
        return BlockCost(
            block=self._probe.block.index,
            prefill_milliseconds=_milliseconds(self._prefill),
            step_milliseconds=_milliseconds(self._steps),
            runs=tuple(
                RunCost(tokens=width, milliseconds=_milliseconds(times)) for width, times in self._passes.items()
            ),
        )

    def _seconds(self, tokens: int, work: Callable[[], object]) -> float:
        """Time of some work in the middle of the sequence; reading a token waits for a device."""
        runner = self._probe.runner
        runner.seek(self._probe.block.prefix + (self._probe.count - tokens) // 2)
        runner.fetch("previous")
        begin = time.perf_counter()
        work()
        runner.fetch("previous")
        return time.perf_counter() - begin


def _milliseconds(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds)
