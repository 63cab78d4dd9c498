"""The integration of a continuous flow, once for all backends: from noise at time 0 to data at time 1."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.continuous_runner import ContinuousRunner
from starflow.runtime.continuous.guidance_over_time import changes, weights_at
from starflow.runtime.ode.divergence import check_state, has_diverged
from starflow.runtime.ode.dormand_prince import integrate_adaptively
from starflow.runtime.ode.fixed_step import pass_table
from starflow.runtime.ode.tableau import fixed_step_tableau
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.integration_plan import AdaptiveSteps, FixedSteps

PASSES_PER_REPORT = 16  # number of passes between two progress reports

OnTime = Callable[[float], None]


@dataclass(frozen=True)
class Integrated:
    """The result of an integration."""

    x: NDArray[np.float32]  # [B, *data_shape] float32
    passes: int  # number of runs of the network
    times: tuple[float, ...]


def integrate_batch(
    runner: ContinuousRunner,
    x: NDArray,
    plan: FixedSteps | AdaptiveSteps,
    on_time: OnTime = lambda time: None,
    guidance: Sequence[Guidance] = (),
) -> Integrated:
    """Integrate one batch of the exported size.

    Args:
        runner: Runs the velocity graph, whose condition and guidance are set.
        x: Noise [B, *data_shape] float32.
        on_time: Called with the time just reached.
        guidance: Of each image. It matters only if it changes over time, since the runner has the weights.

    Raises:
        IntegrationError: the integration diverged, or the tolerance is out of reach.
    """
    if isinstance(plan, AdaptiveSteps):
        return _adaptive(runner, x, plan.tolerance, on_time, guidance)
    table = plan_table(plan)
    runner.start(x)
    for part in _loaded(runner, table, guidance):
        for first in range(0, len(part), PASSES_PER_REPORT):
            passes = part[first : first + PASSES_PER_REPORT]
            runner.advance(len(passes))
            on_time(float(passes[-1, 0]))
    found = runner.read()
    if has_diverged(found):
        # No state was read on the way, so that no device had to wait. Integrate again and read each of them.
        for step, (state, time) in enumerate(zip(states(runner, x, table, guidance), plan.times[1:], strict=True), 1):
            check_state(state, step, plan.steps, time)
    return Integrated(found, len(table), plan.times)


def plan_table(plan: FixedSteps) -> NDArray[np.float64]:
    """The passes of a plan, see `pass_table`."""
    return pass_table(fixed_step_tableau(plan.solver), plan.times)


def states(
    runner: ContinuousRunner, x: NDArray, table: NDArray, guidance: Sequence[Guidance] = ()
) -> Iterator[NDArray[np.float32]]:
    """The state after every step of an integration from x."""
    runner.start(x)
    for part in _loaded(runner, table, guidance):
        for last in part[:, 3]:
            runner.advance(1)
            if last:
                yield runner.read()


def _loaded(runner: ContinuousRunner, table: NDArray, guidance: Sequence[Guidance]) -> Iterator[NDArray]:
    """Load passes part by part, as many as the runner takes, with one set of guidance weights for each part."""
    borders, starts = changes(guidance), _step_starts(table)
    cuts = np.flatnonzero(np.diff(np.searchsorted(borders, starts, side="right"))) + 1
    for first, last in pairwise((0, *cuts.tolist(), len(table))):
        if borders:
            runner.guide(weights_at(guidance, starts[first]))
        for begin in range(first, last, runner.max_passes):
            part = table[begin : min(begin + runner.max_passes, last)]
            runner.load(part)
            yield part


def _step_starts(table: NDArray) -> NDArray:
    """For each pass the time at which its step starts."""
    begins = np.concatenate([[True], table[:-1, 3] > 0])
    starts: NDArray = table[begins, 0][np.cumsum(begins) - 1]
    return starts


def _adaptive(
    runner: ContinuousRunner, x: NDArray, tolerance: float, on_time: OnTime, guidance: Sequence[Guidance]
) -> Integrated:
    def velocity(point: NDArray, time: float) -> NDArray:
        on_time(time)
        return runner.velocity(point, time).astype(np.float64)

    borders, passes, times = changes(guidance), 0, [0.0]
    # No step leads over a change of guidance: there the velocity jumps, which no error estimate foresees.
    for start, end in pairwise((0.0, *borders, 1.0)):
        if borders:
            runner.guide(weights_at(guidance, start))
        result = integrate_adaptively(velocity, x, tolerance, start, end)
        x, passes, times = result.x, passes + result.passes, [*times, *result.times[1:]]
    return Integrated(x.astype(np.float32), passes, tuple(times))
