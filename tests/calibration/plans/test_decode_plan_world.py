"""The whole choice of a decode plan, in a world whose errors and times are known functions of the plan."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from starflow.calibration.cases import Cases
from starflow.calibration.plans import decode_plan as module
from starflow.calibration.plans.candidates import BlockCandidates, candidate_edges, explore
from starflow.calibration.plans.convergence import ChunkCurve, WindowTrial
from starflow.calibration.plans.decode_plan import DecodeCalibration, calibrate_plan, near_error
from starflow.calibration.plans.decode_plan_report import as_a_distribution
from starflow.calibration.plans.runs import PlanOptions, PlanRuns
from starflow.calibration.plans.sample_distribution import SampleDistribution
from starflow.runtime.plans.calibrated_decode_plan import BlockCost, RunCost, segment_milliseconds, segment_passes
from starflow.runtime.plans.decode_plan import BlockPlan, Chunk, DecodePlan, Guess, Segment, Steps, Window
from starflow.runtime.traces.case import Case

TOKENS, WIDTHS, BATCH = 8, (2, 4, 8), 2
RATES = {1: 4.0, 0: 16.0}  # by flow block: what a pass divides a chunk's squared error by
GAINS = {1: 3.0, 0: 0.5}  # by flow block: error of the finished sample over error of the block's tokens


def cost(block: int, share: float) -> BlockCost:
    runs = tuple(RunCost(tokens=width, milliseconds=1 + share * width) for width in WIDTHS)
    return BlockCost(block=block, prefill_milliseconds=0.5, step_milliseconds=1.0, runs=runs)


def segment_error(block: int, segment: Segment) -> float:
    """Squared, of the block's tokens."""
    if isinstance(segment, Steps):
        return 0.0
    if isinstance(segment, Window):
        return 1e-6
    assert isinstance(segment, Chunk)
    if segment.passes >= segment.tokens:
        return 0.0
    return float(segment.tokens / TOKENS * RATES[block] ** -segment.passes)


@dataclass
class Probe:
    """A flow block that converges as `RATES` says; its windows are as slow as steps."""

    index: int
    count: int = TOKENS
    batch: int = BATCH
    energy: float = 1.0
    tokens: Any = field(default_factory=lambda: [np.ones((4, 2))])

    @property
    def block(self) -> Any:
        return SimpleNamespace(index=self.index)

    def chunks(self, widths: Sequence[int], guess: Guess, passes: dict[int, int]) -> list[ChunkCurve]:
        curves = []
        for width in widths:
            errors = [segment_error(self.index, Chunk(tokens=width, passes=n + 1)) for n in range(passes[width])]
            curve = np.repeat([errors], 2 * BATCH, axis=0)
            curves += [ChunkCurve(start, width, curve, np.sqrt(curve)) for start in range(0, self.count, width)]
        return curves

    def window(self, window: Window) -> WindowTrial:
        return WindowTrial(window, ((1,) * self.count,), segment_error(self.index, window))

    def decode(self, segments: Sequence[Segment]) -> float:
        return sum(segment_error(self.index, segment) for segment in segments)


@dataclass
class World:
    """Takes the place of the sampler. `slower` blocks take eight times the time that their costs say when they are planned."""

    costs: dict[int, BlockCost]
    slower: frozenset[int] = frozenset()
    factor: float = 1.0  # on the error of the samples that plans are judged by
    now: float = 0.0

    def sample(self, runs: PlanRuns, plan: DecodePlan, count: int | None = None, lap: Any = None) -> Any:
        passes, error = {}, 0.0
        for block in (1, 0):
            segments = plan.segments(block, TOKENS)
            error += GAINS[block] ** 2 * sum(segment_error(block, segment) for segment in segments)
            spent = sum(segment_milliseconds(segment, self.costs[block]) or 0.0 for segment in segments)
            planned = any(each.block == block for each in plan.blocks)
            self.now += (
                self.costs[block].prefill_milliseconds + spent * (8 if planned and block in self.slower else 1)
            ) / 1000
            if lap:
                lap(block)
            passes[block] = float(sum(segment_passes(segment) or 0 for segment in segments))
        x = np.zeros((len(runs.case.noise[:count]), 2))
        x[:, 0] = 1.0
        x[:, 1] = error**0.5 * (self.factor if runs.case.seed == 1 else 1.0)
        return x, passes

    def error(self, plan: DecodePlan) -> float:
        errors = (GAINS[b] ** 2 * sum(segment_error(b, s) for s in plan.segments(b, TOKENS)) for b in (1, 0))
        return self.factor * sum(errors) ** 0.5

    def milliseconds(self, plan: DecodePlan) -> float:
        segments = {b: plan.segments(b, TOKENS) for b in (1, 0)}
        times = (segment_milliseconds(s, self.costs[b]) or 0.0 for b in (1, 0) for s in segments[b])
        return 1.0 + sum(times)


def calibrate(
    monkeypatch: pytest.MonkeyPatch, world: World, told: list[tuple[Any, ...]] | None = None, **options: Any
) -> DecodeCalibration:
    monkeypatch.setattr(PlanRuns, "sample", lambda *args, **more: world.sample(*args, **more))
    monkeypatch.setattr(module, "compare_samples", lambda _, plan, count: SampleDistribution(count, 0.1, 2.0, 0.9))
    monkeypatch.setattr(module, "probes", lambda *_: (None, {1: Probe(1), 0: Probe(0)}))
    monkeypatch.setattr(time, "perf_counter", lambda: world.now)
    flow: Any = SimpleNamespace(
        decoded_tokens=lambda: {1: TOKENS, 0: TOKENS}, max_chunk=8, batch=BATCH, blocks=(), guided=False, students=()
    )
    bundle: Any = SimpleNamespace(autoregressive=flow, manifest=flow)
    noise = [np.zeros((4 + 2 * seed, 2), np.float32) for seed in (0, 1)]
    cases = Cases(*(Case(noise[seed], None, None, 1.5, seed) for seed in (0, 1)))

    def progress(done: int, total: int, doing: str | None = None) -> None:
        if told is not None:
            told.append((done, total, doing))

    variant: Any = SimpleNamespace(name="cpu-fp32")
    backend: Any = SimpleNamespace(name=options.pop("backend", "onnxruntime cpu"))
    chosen = PlanOptions(**({"repetitions": 2, "fixed": True} | options))
    costs = tuple(world.costs[block] for block in (1, 0))
    return calibrate_plan(bundle, variant, backend, cases, chosen, costs=costs, progress=progress)


def cheap(share: float = 0.05) -> dict[int, BlockCost]:
    return {block: cost(block, share) for block in (1, 0)}


def every_plan() -> list[DecodePlan]:
    """Every way to decode both blocks by chunks of one kind or by steps."""
    ways: list[tuple[Segment, ...]] = [(Steps(tokens=TOKENS),)]
    for width in WIDTHS:
        ways += [(Chunk(tokens=width, passes=n),) * (TOKENS // width) for n in range(1, width + 1)]
    return [
        DecodePlan(blocks=(BlockPlan(block=1, segments=first), BlockPlan(block=0, segments=second)))
        for first, second in itertools.product(ways, ways)
    ]


@pytest.mark.parametrize("budget", [0.3, 3e-2, 3e-3])
def test_the_plan_is_within_the_budget_and_about_as_fast_as_any(monkeypatch: pytest.MonkeyPatch, budget: float) -> None:
    world, told = World(cheap()), list[tuple[Any, ...]]()
    found = calibrate(monkeypatch, world, told, budget=budget)
    best = min(world.milliseconds(plan) for plan in every_plan() if world.error(plan) <= budget)
    assert found.spec is not None and found.reason is None
    spec = found.spec
    assert spec.error == pytest.approx(world.error(found.plan), rel=1e-6) and spec.error <= budget
    assert world.milliseconds(found.plan) <= 1.05 * best < 1.0 + 2 * TOKENS
    assert (
        spec.milliseconds == pytest.approx(world.milliseconds(found.plan)) == pytest.approx(spec.predicted_milliseconds)
    )
    assert spec.sequential_milliseconds == pytest.approx(1.0 + 2 * TOKENS) == found.sequential.milliseconds
    assert spec.passes == sum(found.measured.passes.values())
    assert (spec.backend, spec.variant, spec.budget, spec.images, spec.guidance) == (
        "onnxruntime cpu", "cpu-fp32", budget, 6, 1.5,
    )  # fmt: skip
    assert spec.blocks == found.plan.blocks and spec.costs == found.costs == tuple(world.costs[b] for b in (1, 0))
    assert [candidate.block for candidate in found.candidates] == [1, 0]
    for block in (1, 0):
        own = sum(segment_milliseconds(s, world.costs[block]) or 0.0 for s in found.plan.segments(block, TOKENS))
        assert found.predicted_milliseconds(block) == pytest.approx(0.5 + own)
        assert found.planned.part_milliseconds[block] == pytest.approx(0.5 + own)
    assert [values[:2] for values in told] == [(number, 8) for number in range(9)]
    assert [values[2] for values in told[:-1]] == [
        "drawing samples", "timing passes", "flow block 1", "flow block 0", "sensitivity", "searching", "timing plans",
        "comparing samples",
    ]  # fmt: skip


@pytest.mark.parametrize("factor", [0.1, 3.0])
def test_samples_that_err_otherwise_than_predicted(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Plans are judged on other samples: more error than predicted tightens the search, less loosens it."""
    world = World(cheap(), factor=factor)
    found = calibrate(monkeypatch, world, budget=3e-2)
    best = min(world.milliseconds(plan) for plan in every_plan() if world.error(plan) <= 3e-2)
    assert found.measured.error <= 3e-2 and world.milliseconds(found.plan) <= 1.15 * best


def test_a_block_that_errs_little_in_the_sample_is_decoded_in_fewer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RATES, 0, 4.0)
    monkeypatch.setitem(GAINS, 0, 1e-4)
    found = calibrate(monkeypatch, World(cheap()), budget=1e-2)
    assert found.measured.passes[0] == 1 < found.measured.passes[1]


def test_a_block_that_is_slower_than_predicted_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(cheap(), frozenset({0}))
    found = calibrate(monkeypatch, world, budget=0.3)
    assert [block.block for block in found.plan.blocks] == [1]
    assert found.measured.passes[0] == TOKENS and found.planned.part_milliseconds[0] == pytest.approx(0.5 + TOKENS)
    assert found.spec is not None and found.spec.milliseconds < found.spec.sequential_milliseconds


def test_where_nothing_pays_nothing_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    found = calibrate(monkeypatch, World(cheap(1.0)), budget=3e-2)
    assert (found.spec, found.plan.blocks, found.measured.error) == (None, (), 0.0)
    assert found.reason == "no plan within the budget is faster than sequential decoding"
    found = calibrate(monkeypatch, World(cheap(), frozenset({0, 1})), budget=0.3)
    assert found.spec is None and found.plan.blocks == ()


def test_samples_are_compared_if_they_take_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = calibrate(monkeypatch, World(cheap()), budget=3e-2)
    assert found.distribution == SampleDistribution(128, 0.1, 2.0, 0.9)
    assert "as a distribution: Fréchet distance 0.1 (2 between two sets" in as_a_distribution(found)[0]
    costs = {block: slowed(each, 10.0) for block, each in cheap().items()}
    slow = calibrate(monkeypatch, World(costs), budget=3e-2)
    together = 2 * slow.sequential.milliseconds + slow.planned.milliseconds
    assert slow.distribution is not None and slow.distribution.samples == int(12_000 / together) * BATCH < 128
    costs = {block: slowed(each, 1000.0) for block, each in cheap().items()}
    slow = calibrate(monkeypatch, World(costs), budget=3e-2)
    assert slow.spec is not None and slow.distribution is None
    assert as_a_distribution(slow) == ("as a distribution: not measured, since 16 samples of each take more than 12 s",)


def slowed(cost: BlockCost, factor: float) -> BlockCost:
    runs = tuple(RunCost(tokens=run.tokens, milliseconds=factor * run.milliseconds) for run in cost.runs)
    prefill, step = factor * cost.prefill_milliseconds, factor * cost.step_milliseconds
    return BlockCost(block=cost.block, prefill_milliseconds=prefill, step_milliseconds=step, runs=runs)


def test_devices_get_fixed_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def noting(*given: Any, fixed: bool) -> BlockCandidates:
        seen.append(fixed)
        return explore(*given, fixed=fixed)

    monkeypatch.setattr(module, "explore", noting)
    for backend, fixed in (("onnxruntime cpu", False), ("onnxruntime cpu", True), ("tensorrt", False)):
        found = calibrate(monkeypatch, World(cheap()), budget=3e-2, backend=backend, fixed=fixed)
        wanted = fixed or backend == "tensorrt"
        assert seen[-2:] == [wanted] * 2
        for block in found.plan.blocks:
            assert not wanted or all(not isinstance(s, Chunk | Window) or s.tolerance is None for s in block.segments)


def test_gains_are_those_of_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured near ten times the budget, on the samples that are calibrated on."""
    gains: list[dict[str, float]] = []
    near: list[float] = []

    def edges(found: Any, cost: Any, first: int, batch: int, own: dict[str, float], *, fixed: bool) -> Any:
        gains.append(own)
        return candidate_edges(found, cost, first, batch, own, fixed=fixed)

    def noting(found: Any, error: float) -> Any:
        near.append(error)
        return near_error(found, error)

    monkeypatch.setattr(module, "candidate_edges", edges)
    monkeypatch.setattr(module, "near_error", noting)
    calibrate(monkeypatch, World(cheap(), factor=7.0), budget=3e-3)
    assert near == pytest.approx([3e-2, 3e-2])
    for own, block in zip(gains, (1, 0), strict=True):
        assert own == pytest.approx({"chunk": GAINS[block], "window": GAINS[block]}, rel=1e-6)


def test_the_next_gain_is_what_a_larger_budget_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(cheap(0.3))
    found = calibrate(monkeypatch, world, budget=3e-3)
    gain = found.next_gain
    assert gain is not None
    assert gain.budget > 3e-3
    other = calibrate(monkeypatch, world, budget=gain.budget)
    before, after = (world.milliseconds(each.plan) - 1.0 for each in (found, other))  # without prefill
    assert 1 - after / before == pytest.approx(gain.saved, abs=0.02)
    changed = {b for b in (1, 0) if found.plan.segments(b, TOKENS) != other.plan.segments(b, TOKENS)}
    assert changed == set(gain.blocks)
    assert calibrate(monkeypatch, world, budget=0.4).next_gain is None, "the budget is as large as it may be"
