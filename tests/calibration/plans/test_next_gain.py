"""What limits a plan, where every way over the tokens is known."""

import pytest

from starflow.calibration.plans.budget_search import PlanEdge, plan_of
from starflow.calibration.plans.next_gain import next_gain
from starflow.calibration.plans.search import Edge
from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL
from starflow.runtime.plans.decode_plan import Chunk, Steps

DEEP, SHALLOW = 1, 0
STEPS: list[PlanEdge] = [
    Edge(token, token + 1, 1.0, 0.0, (DEEP if token < 4 else SHALLOW, Steps(tokens=1))) for token in range(8)
]


def whole(block: int, passes: int, error: float) -> PlanEdge:
    """All four tokens of a flow block in passes that take 1.5 ms each."""
    start = 0 if block == DEEP else 4
    return Edge(start, start + 4, 1.5 * passes, error**2, (block, Chunk(tokens=4, passes=passes)))


def test_a_block_in_one_pass_is_next() -> None:
    """It saves 2.5 of 8 ms, and needs an error of 0.028, of which the listed budgets reach 0.03."""
    edges = [*STEPS, whole(SHALLOW, 1, 0.028), whole(DEEP, 1, 0.4)]
    found = next_gain(8, edges, 0.01, SEQUENTIAL, 8.0)
    assert found is not None
    assert found.budget == pytest.approx(0.03)
    assert found.saved == pytest.approx(2.5 / 8)
    assert found.blocks == (SHALLOW,)


def test_what_the_plan_has_is_no_gain() -> None:
    edges = [*STEPS, whole(SHALLOW, 1, 0.005), whole(DEEP, 2, 0.09)]
    plan = plan_of([*STEPS[:4], whole(SHALLOW, 1, 0.005)])
    found = next_gain(8, edges, 0.01, plan, 5.5)
    assert found is not None
    assert found.budget == pytest.approx(0.1)
    assert found.saved == pytest.approx(1 / 5.5)
    assert found.blocks == (DEEP,)


def test_nothing_is_faster_at_any_error() -> None:
    """Small gains are not worth a word, and an error of more than a half makes other samples."""
    small: PlanEdge = Edge(0, 4, 3.5, 0.02**2, (DEEP, Chunk(tokens=4, passes=2)))
    assert next_gain(8, [*STEPS, small, whole(SHALLOW, 1, 0.6)], 0.01, SEQUENTIAL, 8.0) is None
    assert next_gain(8, STEPS[1:], 0.01, SEQUENTIAL, 8.0) is None, "there is no path"
