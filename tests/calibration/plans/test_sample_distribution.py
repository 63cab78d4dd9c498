"""Samples of a plan as a distribution: exact plans, one that is not, and how many samples there are."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from starflow.calibration.cases import draw_cases
from starflow.calibration.plans.runs import PlanRuns
from starflow.calibration.plans.sample_distribution import compare_samples, samples_to_compare
from starflow.runtime.backends.choice import open_backend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plans.decode_plan import BlockPlan, Chunk, DecodePlan, Segment, Steps

COUNT = 32


@pytest.fixture
def runs(tiny_bundle: Path) -> Iterator[PlanRuns]:
    """Of a class-conditional STARFlow of random weights, whose blocks have 16 tokens; the case has 8 images."""
    bundle = Bundle.open(tiny_bundle)
    variant, backend = open_backend(bundle, "onnxruntime", variant="cpu-fp32", provider="cpu", threads=1)
    with backend:
        yield PlanRuns(bundle, variant, backend, draw_cases(bundle, 8, seed=0).check)


def both_blocks(*segments: Segment) -> DecodePlan:
    return DecodePlan(blocks=tuple(BlockPlan(block=block, segments=segments) for block in (1, 0)))


def test_plans_that_are_exact(runs: PlanRuns) -> None:
    steps = compare_samples(runs, both_blocks(Steps(tokens=16)), COUNT)
    assert steps.samples == COUNT
    assert steps.frechet == pytest.approx(0, abs=1e-9 * steps.frechet_floor) and steps.diversity == 1
    passes = compare_samples(runs, both_blocks(Chunk(tokens=16, passes=16)), COUNT)
    assert passes.frechet < 1e-6 * passes.frechet_floor and passes.diversity == pytest.approx(1, abs=1e-5)


def test_a_plan_that_is_not_exact(runs: PlanRuns) -> None:
    """One pass from zeros leaves out the context of every token."""
    found = compare_samples(runs, both_blocks(Chunk(tokens=16, passes=1, guess="zeros")), COUNT)
    assert found.frechet > 0.01 * found.frechet_floor and abs(found.diversity - 1) > 0.01


def test_samples_that_are_half_as_wide(runs: PlanRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged sampler: 0.5 times the samples, whose diversity is 0.5, and whose distance is that of their moments."""
    damaged = both_blocks(Steps(tokens=16))
    seen: dict[int, np.ndarray] = {}

    def sample(self: PlanRuns, plan: DecodePlan) -> tuple[np.ndarray, dict[int, float]]:
        x = np.random.default_rng(self.case.noise.sum().astype(int) & 0xFFFF).standard_normal((COUNT, 1, 4, 4))
        seen[self.case.seed] = x
        return (0.5 if plan is damaged else 1.0) * x, {}

    monkeypatch.setattr(PlanRuns, "sample", sample)
    found = compare_samples(runs, damaged, COUNT)
    x = seen[min(seen)].reshape(COUNT, -1)
    assert found.diversity == pytest.approx(0.5)
    # Covariances C and C / 4: the distance is |mean / 2|² + trace(C) / 4.
    assert found.frechet == pytest.approx((x.mean(0) ** 2).sum() / 4 + x.var(0, ddof=1).sum() / 4)
    assert len(seen) == 2 and found.frechet_floor > 0


def test_every_condition_comes_several_times(runs: PlanRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight images of four conditions each would have none twice among eight samples."""
    drawn = []

    def sample(self: PlanRuns, plan: DecodePlan) -> tuple[np.ndarray, dict[int, float]]:
        drawn.append((self.case.seed, None if self.case.condition is None else self.case.condition.tolist()))
        return self.case.noise, {}

    monkeypatch.setattr(PlanRuns, "sample", sample)
    found = compare_samples(runs, both_blocks(Steps(tokens=16)), 16)
    classes = runs.case.condition
    assert classes is not None and len(set(drawn[0][1] or ())) == len(set(classes[:4].tolist())) > 1
    assert all(condition == classes[np.arange(16) % 4].tolist() for _, condition in drawn)
    assert len({seed for seed, _ in drawn}) == 2 and drawn[0] == drawn[2] and runs.case.seed not in dict(drawn)
    assert np.isfinite(found.diversity)


@pytest.mark.parametrize(
    ("images", "batch", "milliseconds", "count"),
    [
        (8, 1, 10.0, 128),
        (100, 1, 10.0, 400),  # four for each image
        (8, 10, 10.0, 130),  # in whole batches
        (8, 1, 300.0, 40),  # what 12 s allow
        (8, 8, 3000.0, 32),
        (8, 1, 900.0, 0),  # 13 tell nothing
        (8, 64, 13000.0, 0),
    ],
)
def test_number_of_samples(images: int, batch: int, milliseconds: float, count: int) -> None:
    assert samples_to_compare(images, batch, milliseconds) == count
