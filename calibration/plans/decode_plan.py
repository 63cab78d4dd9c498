"""Choosing a decode plan: measure, search, run what was found, and keep it only if it is within its budget and faster."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from starflow.calibration.cases import Cases
from starflow.calibration.plans.budget_search import PlanEdge, fastest_plan
from starflow.calibration.plans.candidates import BlockCandidates, block_curve, candidate_edges, explore
from starflow.calibration.plans.convergence import BlockProbe, probes
from starflow.calibration.plans.costs import measure_costs
from starflow.calibration.plans.next_gain import NextGain, next_gain
from starflow.calibration.plans.runs import Measured, PlanOptions, PlanRuns
from starflow.calibration.plans.sample_distribution import SampleDistribution, compare_samples, samples_to_compare
from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL
from starflow.runtime.backends.base import Backend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.diagnostics.take_turns import Times
from starflow.runtime.plain.progress import Report, no_report
from starflow.runtime.plans.calibrated_decode_plan import (
    BlockCost,
    CalibratedDecodePlan,
    predicted_milliseconds,
    segment_milliseconds,
)
from starflow.runtime.plans.decode_plan import BlockPlan, Chunk, DecodePlan, Students


@dataclass(frozen=True)
class StudentTimes:
    """Times of a batch, by the students of a bundle and by the plan in turn: what giving up exactness would save."""

    blocks: tuple[int, ...]  # the flow blocks that a student does; the others are decoded by the plan
    milliseconds: float
    plan_milliseconds: float


@dataclass(frozen=True)
class DecodeCalibration:
    """The result of a calibration."""

    options: PlanOptions
    # The plan as a bundle keeps it, or None where none was faster than sequential decoding.
    spec: CalibratedDecodePlan | None
    reason: str | None  # why there is none
    plan: DecodePlan  # the best plan that was found, kept or not
    measured: Measured
    distribution: SampleDistribution | None  # of a plan that is kept; None if the samples would take too long
    planned: Times  # times of a batch by the plan, its parts by flow block
    sequential: Times  # times of a batch decoded token by token
    candidates: tuple[BlockCandidates, ...]  # what was measured of each flow block, in sampling order
    costs: tuple[BlockCost, ...]  # times of each flow block
    next_gain: NextGain | None  # what a larger budget would bring; None if no plan is much faster at any budget
    students: StudentTimes | None = None  # None if there are none, or none that were trained for the guidance

    def predicted_milliseconds(self, block: int) -> float | None:
        """Predicted time of one flow block."""
        cost = next(cost for cost in self.costs if cost.block == block)
        tokens = next(found.tokens for found in self.candidates if found.block == block)
        times = [segment_milliseconds(segment, cost) for segment in self.plan.segments(block, tokens)]
        return None if None in times else cost.prefill_milliseconds + sum(time for time in times if time is not None)


def calibrate_plan(
    bundle: Bundle,
    variant: Variant,
    backend: Backend,
    cases: Cases,
    options: PlanOptions,
    *,
    costs: tuple[BlockCost, ...] | None = None,
    progress: Report = no_report,
) -> DecodeCalibration:
    """Find the plan of least time whose error stays within the budget.

    Args:
        cases: Convergence is measured on the first, plans are judged on the second.
        costs: Times of passes, where they are known.
    """
    manifest, fixed = bundle.autoregressive, options.fixed or backend.name != "onnxruntime cpu"
    total = len(manifest.decoded_tokens()) + 6
    progress(0, total, "drawing samples")
    _, blocks = probes(bundle, variant, backend, cases.calibrate)
    progress(1, total, "timing passes")
    widths = widths_to_try(options.widths, (probe.count for probe in blocks.values()), manifest.max_chunk)
    costs = costs or measure_costs(blocks, widths, options.repetitions)
    candidates = []
    for number, (probe, cost) in enumerate(zip(blocks.values(), costs, strict=True)):
        progress(2 + number, total, f"flow block {probe.block.index}")
        candidates.append(explore(probe, cost, options.budget, fixed=fixed))
    progress(total - 4, total, "sensitivity")
    gains = _gains(PlanRuns(bundle, variant, backend, cases.calibrate, SEQUENTIAL), blocks, candidates, options.budget)
    progress(total - 3, total, "searching")
    runs = PlanRuns(bundle, variant, backend, cases.check, SEQUENTIAL)
    edges: list[PlanEdge] = []
    first = 0
    for found, cost in zip(candidates, costs, strict=True):
        edges += candidate_edges(found, cost, first, manifest.batch, gains[found.block], fixed=fixed)
        first += found.tokens
    plan = fastest_plan(first, edges, options.budget, lambda plan: runs.measure(plan).error)
    progress(total - 2, total, "timing plans")
    plan, sequential, planned = _faster_blocks(runs, plan, 2 * options.repetitions)
    students = _student_times(runs, plan, 2 * options.repetitions)
    measured = runs.measure(plan)
    reason = refusal(plan, measured.error, options.budget, planned.milliseconds, sequential.milliseconds)
    predicted = predicted_milliseconds(plan, costs, manifest.decoded_tokens())
    assert predicted is not None
    decoding = predicted - sum(cost.prefill_milliseconds for cost in costs)
    gain = next_gain(first, edges, options.budget, plan, decoding)
    progress(total - 1, total, "comparing samples")
    spec = distribution = None
    if not reason:
        together = 2 * sequential.milliseconds + planned.milliseconds
        if count := samples_to_compare(len(cases.check.noise), manifest.batch, together):
            distribution = compare_samples(runs, plan, count)
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
    return DecodeCalibration(
        options,
        spec,
        reason,
        plan,
        measured,
        distribution,
        planned,
        sequential,
        tuple(candidates),
        costs,
        gain,
        students,
    )


def refusal(plan: DecodePlan, error: float, budget: float, planned: float, sequential: float) -> str | None:
    """Why a plan of so many milliseconds a batch is not stored, or None; `sequential` is the time token by token."""
    if not plan.blocks:
        return "no plan within the budget is faster than sequential decoding"
    if error > budget:
        return f"the plan's error, {error:.1e}, exceeds the budget, {budget:g}"
    if planned >= sequential:
        return "the plan found takes no less time than sequential decoding"
    return None


def widths_to_try(wanted: Sequence[int], tokens: Iterable[int], most: int) -> list[int]:
    """Numbers of tokens in a pass that the bundle can run; all `tokens` of a flow block are always tried."""
    return sorted({width for width in (*wanted, *tokens) if width <= most})


def _gains(
    runs: PlanRuns, blocks: dict[int, BlockProbe], candidates: Sequence[BlockCandidates], budget: float
) -> dict[int, dict[str, float]]:
    """For every flow block, how the error of its tokens comes out in the finished sample, by kind of segment.

    Chunks were measured behind the right tokens, so their gain includes what their errors do to later tokens of the block.
    Windows were measured as they will run.
    """
    gains = {}
    for found in candidates:
        gains[found.block] = {"chunk": 1.0, "window": 1.0}
        near = near_error(found, 10 * budget)
        if near is None:
            continue
        plan, predicted = near
        actual = blocks[found.block].decode(plan.segments(found.block, found.tokens)) ** 0.5
        final = runs.measure(plan).error
        if actual > 0 and np.isfinite(final):
            gains[found.block] = {"chunk": final / predicted, "window": final / actual}
    return gains


def near_error(found: BlockCandidates, error: float) -> tuple[DecodePlan, float] | None:
    """Chunks for one flow block whose error is predicted to be near `error`, and that prediction."""
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


def _faster_blocks(runs: PlanRuns, plan: DecodePlan, repetitions: int) -> tuple[DecodePlan, Times, Times]:
    """Leave out flow blocks that are no faster by the plan; also times of sequential decoding and of the plan left."""
    sequential, planned = runs.time((SEQUENTIAL, plan), repetitions)
    kept = without_slower(plan, planned.part_milliseconds, sequential.part_milliseconds)
    if kept != plan:
        sequential, planned = runs.time((SEQUENTIAL, kept), repetitions)
    return kept, sequential, planned


def _student_times(runs: PlanRuns, plan: DecodePlan, repetitions: int) -> StudentTimes | None:
    manifest, weight = runs.bundle.autoregressive, runs.case.guidance
    ranges = [student.guidance for student in manifest.students]
    if not ranges or not all(low <= weight <= high for low, high in ranges):
        return None
    by_students = Students(passes=0).plan(manifest.decoded_tokens(), manifest.student_blocks, plan)
    planned, taken = runs.time((plan, by_students), repetitions)
    return StudentTimes(manifest.student_blocks[::-1], taken.milliseconds, planned.milliseconds)


def without_slower(plan: DecodePlan, planned: Mapping, sequential: Mapping) -> DecodePlan:
    """The plan for only those flow blocks that are faster by it; milliseconds are by flow block."""
    return DecodePlan(blocks=tuple(each for each in plan.blocks if planned[each.block] < sequential[each.block]))
