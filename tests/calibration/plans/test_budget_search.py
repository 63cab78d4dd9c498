"""Tightening and loosening, against the best of all plans where the measured error is a known multiple of the predicted one."""

import itertools
import random

import pytest

from starflow.calibration.plans.budget_search import PlanEdge, fastest_plan, plan_of
from starflow.calibration.plans.search import UNITS, Edge
from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL
from starflow.runtime.plans.decode_plan import BlockPlan, Chunk, DecodePlan, Steps

TOKENS, BUDGET = 6, 1e-2


def step(token: int, block: int = 0) -> PlanEdge:
    return Edge(token, token + 1, 1.0, 0.0, (block, Steps(tokens=1)))


def chunk(start: int, end: int, milliseconds: float, error: float, passes: int = 1, block: int = 0) -> PlanEdge:
    return Edge(start, end, milliseconds, error**2, (block, Chunk(tokens=end - start, passes=passes)))


def random_edges(seed: int) -> list[PlanEdge]:
    """Steps, and chunks of which more passes cost more and err less."""
    draw = random.Random(seed)
    chunks = [
        chunk(start, end, (0.3 + 0.2 * draw.random()) * passes, BUDGET * 3 * draw.random() / 4**passes, passes)
        for start, end in itertools.combinations(range(TOKENS + 1), 2)
        if end - start > 1
        for passes in range(1, end - start)
    ]
    return [*(step(token) for token in range(TOKENS)), *chunks]


def all_paths(edges: list[PlanEdge], start: int = 0) -> list[list[PlanEdge]]:
    if start == TOKENS:
        return [[]]
    return [[edge, *rest] for edge in edges if edge.start == start for rest in all_paths(edges, edge.end)]


def predicted(path: list[PlanEdge]) -> float:
    return sum(edge.error for edge in path) ** 0.5


def milliseconds(path: list[PlanEdge]) -> float:
    return sum(edge.milliseconds for edge in path)


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_comes_close_to_the_best_plan_within_the_budget(factor: float, seed: int) -> None:
    edges = random_edges(seed)
    paths = all_paths(edges)
    by_plan = {plan_of(path): path for path in paths}

    def error(path: list[PlanEdge]) -> float:
        return factor * predicted(path)

    plan = fastest_plan(TOKENS, edges, BUDGET, lambda plan: error(by_plan[plan]))
    best = min((path for path in paths if error(path) <= BUDGET), key=milliseconds)
    assert error(by_plan[plan]) <= BUDGET
    assert milliseconds(by_plan[plan]) <= 1.15 * milliseconds(best) < TOKENS


def ladder() -> list[PlanEdge]:
    """One chunk over everything in 1 .. 5 passes, each with half the error of the one before; steps take 6 ms."""
    chunks = [chunk(0, TOKENS, float(passes), 2.0**-passes, passes) for passes in range(1, 6)]
    return [*(step(token) for token in range(TOKENS)), *chunks]


def measured_passes(factor: float, budget: float) -> tuple[list[int], DecodePlan]:
    tried: list[int] = []

    def measure(plan: DecodePlan) -> float:
        (segment,) = plan.blocks[0].segments if plan.blocks else (Steps(tokens=TOKENS),)
        passes = segment.passes if isinstance(segment, Chunk) else TOKENS
        tried.append(passes)
        return factor * 2.0**-passes if passes < TOKENS else 0.0

    return tried, fastest_plan(TOKENS, ladder(), budget, measure)


def test_an_error_close_to_the_budget_ends_the_search() -> None:
    assert measured_passes(1.0, 0.3)[0] == [2]  # 0.25 is 83 % of the budget
    assert measured_passes(1.0, 0.25 / 0.7)[0] == [2]
    assert measured_passes(1.0, 0.25)[0] == [2]
    assert len(measured_passes(1.0, 0.37)[0]) > 1, "68 % is not close"


def test_what_the_search_may_spend_follows_the_measured_error() -> None:
    # Predicted 1/4; measured 1, so the next search may spend 0.3 * 0.85 * 0.3 and takes 4 passes: measured 1/4.
    tried, plan = measured_passes(4.0, 0.3)
    assert tried == [2, 4] and plan.blocks[0].segments == (Chunk(tokens=TOKENS, passes=4),)
    # Measured a tenth of the prediction: three times as much may be spent, not ten times.
    assert measured_passes(0.1, 0.07)[0] == [4, 3, 1]
    # A hundred times: a fifth is left.
    assert measured_passes(100.0, 0.3)[0][:2] == [2, 5]


def test_the_fastest_plan_within_the_budget_is_kept_whatever_comes_later() -> None:
    tried, plan = measured_passes(0.6, 0.3)
    assert tried == [2, 1] and plan.blocks[0].segments == (Chunk(tokens=TOKENS, passes=1),)
    # One pass errs by more than the budget, which the second search finds out.
    tried, plan = measured_passes(0.8, 0.37)
    assert tried[:2] == [2, 1] and plan.blocks[0].segments == (Chunk(tokens=TOKENS, passes=2),)


def test_where_nothing_keeps_the_budget_decoding_is_sequential() -> None:
    assert fastest_plan(TOKENS, ladder(), 0.3, lambda plan: 1.0 if plan.blocks else 0.0) == SEQUENTIAL
    assert fastest_plan(TOKENS, [step(0)], 0.3, lambda plan: 0.0) == SEQUENTIAL, "there is no path"


def test_a_search_ends_after_eight_rounds() -> None:
    edges = [*(step(t) for t in range(TOKENS)), *(chunk(0, TOKENS, 0.01 * p, 0.9**p, p) for p in range(1, 200))]
    tried: list[DecodePlan] = []

    def measure(plan: DecodePlan) -> float:
        tried.append(plan)
        return 10.0

    assert fastest_plan(TOKENS, edges, 0.5, measure) == SEQUENTIAL
    assert 2 <= len(tried) <= 8 and len(set(tried)) == len(tried)


def test_a_plan_that_was_tried_is_not_run_again_and_less_is_allowed() -> None:
    """Errors of two chunks straddle the budget, so a correction leads to a plan that is known."""
    edges = [
        *(step(t) for t in range(TOKENS)),
        chunk(0, 6, 1.0, 0.9),
        chunk(0, 6, 2.0, 0.79, 2),
        chunk(0, 6, 3.0, 0.3, 3),
    ]
    factors = {1: 1.2 / 0.9, 2: 1.05 / 0.79, 3: 0.1}
    tried: list[int] = []

    def measure(plan: DecodePlan) -> float:
        (segment,) = plan.blocks[0].segments
        assert isinstance(segment, Chunk)
        tried.append(segment.passes)
        return factors[segment.passes] * {1: 0.9, 2: 0.79, 3: 0.3}[segment.passes]

    plan = fastest_plan(TOKENS, edges, 1.0, measure)
    assert tried[:2] == [1, 3] and len(set(tried)) == len(tried)
    assert plan.blocks[0].segments[0].tokens == 6


def test_neighbouring_steps_are_joined_and_blocks_of_steps_left_out() -> None:
    path = [step(0, 3), step(1, 3), chunk(2, 4, 1.0, 0.0, block=3), step(4, 3), step(5, 3), step(6, 2), step(7, 2)]
    segments = (Steps(tokens=2), Chunk(tokens=2, passes=1), Steps(tokens=2))
    assert plan_of(path) == DecodePlan(blocks=(BlockPlan(block=3, segments=segments),))
    assert plan_of(path[-2:]) == SEQUENTIAL
    assert UNITS >= 100, "a hundredth of the budget can be told apart"
