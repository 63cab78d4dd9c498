"""Choosing a decode plan: measure, search, run what was found, and keep it only if it is within its budget and faster."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starflow.calibration.cases import Cases
from starflow.calibration.plans.candidates import BlockCandidates, block_curve, candidate_edges, explore
from starflow.calibration.plans.convergence import BlockProbe, probes
from starflow.calibration.plans.costs import measure_costs
from starflow.calibration.plans.search import Edge, cheapest_path
from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL
from starflow.runtime.backends.base import Backend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.diagnostics.benchmark import relative_error
from starflow.runtime.plain.progress import Report, no_report
from starflow.runtime.plans.calibrated_decode_plan import (
    BlockCost,
    CalibratedDecodePlan,
    predicted_milliseconds,
    segment_milliseconds,
)
from starflow.runtime.plans.decode_plan import BlockPlan, Chunk, DecodePlan, Segment, Steps
from starflow.runtime.sampler import Sampler
from starflow.runtime.traces.case import Case

ROUNDS = 8  # searches until a plan's measured error is in the budget, and near it


@dataclass(frozen=True)
class PlanOptions:
    """What is asked for.

    Attributes:
        budget: Largest ||x - sequential|| / ||sequential|| of the finished samples.
        widths: Numbers of tokens in a pass to try.
        fixed: Whether passes must be fixed beforehand, for devices that should not wait for the host.
        repetitions: Of every timing.
    """

    budget: float = 1e-3
    widths: tuple[int, ...] = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    fixed: bool = False
    repetitions: int = 5


@dataclass(frozen=True)
class Measured:
    """A plan as it ran.

    Attributes:
        error: ||x - sequential|| / ||sequential|| over the samples.
        passes: Network passes of each flow block, the mean over the batches.
    """

    error: float
    passes: dict[int, float]


@dataclass(frozen=True)
class Timing:
    """Medians, interleaved: milliseconds of a batch and of each of its flow blocks."""

    milliseconds: float
    blocks: dict[int, float]


@dataclass(frozen=True)
class Calibration:
    """What came of a calibration.

    Attributes:
        spec: The plan as a bundle keeps it, or None where none was faster than sequential decoding.
        reason: Why there is none.
        plan: The best plan that was found, kept or not.
        measured: How it ran.
        planned: How long it took, and
        sequential: how long sequential decoding.
        candidates: What was measured of each flow block, from the top down.
        costs: Times of each flow block.
    """

    spec: CalibratedDecodePlan | None
    reason: str | None
    plan: DecodePlan
    measured: Measured
    planned: Timing
    sequential: Timing
    candidates: tuple[BlockCandidates, ...]
    costs: tuple[BlockCost, ...]


class _Runs:
    """Runs plans on given samples."""

    def __init__(self, bundle: Bundle, variant: Variant, backend: Backend, case: Case) -> None:
        self._bundle, self._variant, self._backend, self.case = bundle, variant, backend, case
        self._sequential = self._sample(SEQUENTIAL, len(case.noise))[0]

    def measure(self, plan: DecodePlan) -> Measured:
        x, passes = self._sample(plan, len(self.case.noise))
        return Measured(
            relative_error(x, self._sequential), {block: statistics.fmean(p) for block, p in passes.items()}
        )

    def time(self, plans: Sequence[DecodePlan], repetitions: int) -> list[Timing]:
        """Time plans on the first batch of the samples."""
        taken: list[list[dict[int, float]]] = [[] for _ in plans]
        for repetition in range(repetitions + 1):
            for plan, times in zip(plans, taken, strict=True):
                marks: dict[int, float] = {}
                last = time.perf_counter()
                self._sample(plan, self._bundle.manifest.batch, marks)
                blocks = {}
                for block, mark in marks.items():
                    blocks[block], last = 1000 * (mark - last), mark
                if repetition:
                    times.append(blocks)
        return [
            Timing(
                statistics.median(sum(blocks.values()) for blocks in times),
                {block: statistics.median(blocks[block] for blocks in times) for block in times[0]},
            )
            for times in taken
        ]

    def _sample(
        self, plan: DecodePlan, count: int, marks: dict[int, float] | None = None
    ) -> tuple[NDArray, dict[int, list[int]]]:
        case, passes = self.case, {}  # type: ignore[var-annotated]

        def on_passes(block: int, number: int) -> None:
            passes.setdefault(block, []).append(number)

        def on_block(block: int, x: NDArray) -> None:
            if marks is not None:
                marks[block] = time.perf_counter()

        condition: Any = None if case.condition is None else case.condition[:count]
        sampler = Sampler(self._bundle, self._variant, self._backend, plan)
        x = sampler.generate(
            case.noise[:count],
            condition,
            case.null_condition,
            guidance=case.guidance,
            on_passes=on_passes,
            on_block=on_block,
        )
        return x, passes


def calibrate_plan(
    bundle: Bundle,
    variant: Variant,
    backend: Backend,
    cases: Cases,
    options: PlanOptions,
    *,
    costs: tuple[BlockCost, ...] | None = None,
    progress: Report = no_report,
) -> Calibration:
    """Find the plan of least time whose error stays in the budget.

    Args:
        bundle: The bundle.
        variant: The variant to plan for.
        backend: Runs it.
        cases: What convergence is measured on, and what plans are judged on.
        options: What is asked for.
        costs: Times of passes, where they are known.
        progress: Called with stages done and in total.
    """
    manifest = bundle.autoregressive
    total = len(manifest.decoded_tokens()) + 5
    progress(0, total, "drawing samples")
    _, blocks = probes(bundle, variant, backend, cases.calibrate)
    widths = [width for width in options.widths if width <= manifest.max_chunk]
    widths = sorted({*widths, *(probe.count for probe in blocks.values() if probe.count <= manifest.max_chunk)})
    progress(1, total, "timing passes")
    costs = costs or measure_costs(blocks, widths, options.repetitions)
    candidates = []
    for number, (probe, cost) in enumerate(zip(blocks.values(), costs, strict=True)):
        progress(2 + number, total, f"flow block {probe.block.index}")
        candidates.append(explore(probe, cost, options.budget, fixed=options.fixed))
    progress(total - 3, total, "sensitivity")
    gains = _gains(_Runs(bundle, variant, backend, cases.calibrate), blocks, candidates, options.budget)
    progress(total - 2, total, "searching")
    runs = _Runs(bundle, variant, backend, cases.check)
    plan = _search(runs, candidates, costs, gains, manifest.batch, options)
    progress(total - 1, total, "timing plans")
    plan, sequential, planned = _faster_blocks(runs, plan, 2 * options.repetitions)
    measured = runs.measure(plan)
    reason = None
    if not plan.blocks:
        reason = "no plan in the budget is faster than sequential decoding"
    elif measured.error > options.budget:
        reason = f"the plan's error, {measured.error:.1e}, is over the budget"
    elif planned.milliseconds >= sequential.milliseconds:
        reason = "the plan found takes no less time than sequential decoding"
    spec = None
    if not reason:
        predicted = predicted_milliseconds(plan, costs, manifest.decoded_tokens())
        assert predicted is not None
        spec = CalibratedDecodePlan(
            backend=backend.name,
            variant=variant.name,
            budget=options.budget,
            error=measured.error,
            images=len(cases.check.noise),
            guidance=cases.check.guidance,
            passes=sum(measured.passes.values()),
            predicted_milliseconds=predicted,
            milliseconds=planned.milliseconds,
            sequential_milliseconds=sequential.milliseconds,
            costs=costs,
            blocks=plan.blocks,
        )
    progress(total, total)
    return Calibration(spec, reason, plan, measured, planned, sequential, tuple(candidates), costs)


def _gains(
    runs: _Runs, blocks: dict[int, BlockProbe], candidates: Sequence[BlockCandidates], budget: float
) -> dict[int, dict[str, float]]:
    """For every block, how the error of its tokens comes out in the finished sample, by kind of segment.

    Chunks were measured behind the right tokens; what their errors do to later tokens of the block is in their gain. Windows ran
    as they will.
    """
    gains = {}
    for found in candidates:
        gains[found.block] = {"chunk": 1.0, "window": 1.0}
        near = _near(found, 10 * budget)
        if near is None:
            continue
        plan, predicted = near
        actual = blocks[found.block].decode(plan.segments(found.block, found.tokens)) ** 0.5
        final = runs.measure(plan).error
        if actual > 0 and np.isfinite(final):
            gains[found.block] = {"chunk": final / predicted, "window": final / actual}
    return gains


def _near(found: BlockCandidates, error: float) -> tuple[DecodePlan, float] | None:
    """Chunks for one block whose error is predicted to be near `error`, and that prediction."""
    choices = [
        (abs(np.log(value / error)), width, number + 1, value)
        for width in {curve.tokens for curve in found.curves if curve.start == 0}
        for number, value in enumerate(block_curve(found.curves, width))
        if value > 1e-5
    ]
    if not choices:
        return None
    _, width, passes, predicted = min(choices)
    segments = tuple(
        Chunk(tokens=min(width, found.tokens - start), passes=passes, guess=found.guess)
        for start in range(0, found.tokens, width)
    )
    return DecodePlan(blocks=(BlockPlan(block=found.block, segments=segments),)), predicted


def _search(
    runs: _Runs,
    candidates: Sequence[BlockCandidates],
    costs: Sequence[BlockCost],
    gains: dict[int, dict[str, float]],
    batch: int,
    options: PlanOptions,
) -> DecodePlan:
    """Search, measure, tighten or loosen, search again: the fastest plan whose measured error is in the budget."""
    edges: list[Edge[tuple[int, Segment]]] = []
    first = 0
    for found, cost in zip(candidates, costs, strict=True):
        edges += candidate_edges(found, cost, first, batch, gains[found.block], fixed=options.fixed)
        first += found.tokens
    best, best_time = SEQUENTIAL, float("inf")
    allowed = options.budget
    tried = set()
    for _ in range(ROUNDS):
        path = cheapest_path(first, edges, allowed**2)
        if path is None:
            break
        plan = _plan(path)
        if plan in tried:
            allowed *= 0.8
            continue
        tried.add(plan)
        measured, taken = runs.measure(plan), sum(edge.milliseconds for edge in path)
        if measured.error <= options.budget and taken < best_time:
            best, best_time = plan, taken
        if 0.7 * options.budget <= measured.error <= options.budget:
            break
        allowed *= float(np.clip(0.85 * options.budget / max(measured.error, 1e-12), 0.2, 3.0))
    return best


def _plan(path: Sequence[Edge[tuple[int, Segment]]]) -> DecodePlan:
    """A path as a plan: neighbouring steps joined, blocks of nothing but steps left out."""
    blocks: dict[int, list[Segment]] = {}
    for edge in path:
        block, segment = edge.what
        segments = blocks.setdefault(block, [])
        if isinstance(segment, Steps) and segments and isinstance(segments[-1], Steps):
            segments[-1] = Steps(tokens=segments[-1].tokens + segment.tokens)
        else:
            segments.append(segment)
    return DecodePlan(
        blocks=tuple(
            BlockPlan(block=block, segments=tuple(segments))
            for block, segments in blocks.items()
            if not all(isinstance(segment, Steps) for segment in segments)
        )
    )


def _faster_blocks(runs: _Runs, plan: DecodePlan, repetitions: int) -> tuple[DecodePlan, Timing, Timing]:
    """The plan without the blocks that it does not make faster; times of sequential decoding and of the plan."""
    sequential, planned = runs.time((SEQUENTIAL, plan), repetitions)
    kept = tuple(block for block in plan.blocks if planned.blocks[block.block] < sequential.blocks[block.block])
    if kept != plan.blocks:
        plan = DecodePlan(blocks=kept)
        sequential, planned = runs.time((SEQUENTIAL, plan), repetitions)
    return plan, sequential, planned


def planned_milliseconds(calibration: Calibration, block: int) -> float | None:
    """Predicted time of one flow block."""
    cost = next(cost for cost in calibration.costs if cost.block == block)
    tokens = next(found.tokens for found in calibration.candidates if found.block == block)
    times = [segment_milliseconds(segment, cost) for segment in calibration.plan.segments(block, tokens)]
    return None if None in times else cost.prefill_milliseconds + sum(time for time in times if time is not None)
