"""What becomes of a plan that was found: when it is stored, which blocks it keeps, and what is probed."""

import re

import numpy as np
import pytest

from starflow.calibration.plans.candidates import BlockCandidates
from starflow.calibration.plans.convergence import ChunkCurve
from starflow.calibration.plans.decode_plan import near_error, refusal, widths_to_try, without_slower
from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL
from starflow.runtime.plans.decode_plan import BlockPlan, Chunk, DecodePlan

PLAN = DecodePlan(blocks=tuple(BlockPlan(block=b, segments=(Chunk(tokens=8, passes=2),)) for b in (2, 1, 0)))


@pytest.mark.parametrize(
    ("plan", "error", "planned", "sequential", "says"),
    [
        (PLAN, 1e-3, 4.0, 5.0, None),
        (SEQUENTIAL, 0.0, 4.0, 5.0, "no plan within the budget is faster"),
        (PLAN, 1.01e-3, 4.0, 5.0, r"error, 1\.0e-03, exceeds the budget, 0\.001"),
        (PLAN, 1e-3, 5.0, 5.0, "no less time"),
        (PLAN, 1e-3, 6.0, 5.0, "no less time"),
    ],
)
def test_why_a_plan_is_not_stored(
    plan: DecodePlan, error: float, planned: float, sequential: float, says: str | None
) -> None:
    reason = refusal(plan, error, 1e-3, planned, sequential)
    assert reason is None if says is None else re.search(says, str(reason))


def test_blocks_that_are_no_faster_are_left_out() -> None:
    planned, sequential = {2: 1.0, 1: 2.0, 0: 3.0}, {2: 2.0, 1: 2.0, 0: 2.0}
    assert [block.block for block in without_slower(PLAN, planned, sequential).blocks] == [2]
    assert without_slower(PLAN, planned, dict.fromkeys(range(3), 9.0)) == PLAN
    assert without_slower(PLAN, dict.fromkeys(range(3), 9.0), sequential) == SEQUENTIAL


def test_widths_to_try() -> None:
    assert widths_to_try((2, 8, 64), (16, 100), 64) == [2, 8, 16, 64]
    assert widths_to_try((2, 8, 64), (16, 17), 16) == [2, 8, 16]


def candidates(*curves: ChunkCurve) -> BlockCandidates:
    return BlockCandidates(3, 6, "zeros", {}, curves, ())


def curve(start: int, tokens: int, *errors: float) -> ChunkCurve:
    values = np.array([errors])
    return ChunkCurve(start, tokens, values, np.ones_like(values))


def test_chunks_whose_error_is_near_one_that_is_asked_for() -> None:
    found = candidates(curve(0, 4, 1e-2, 1e-4, 1e-8), curve(4, 2, 3e-2, 0.0), curve(0, 6, 4e-2, 9e-4, 0.0))
    # Roots of the summed errors: 0.2, 0.01, 1e-4 in chunks of 4; 0.2, 0.03, 0 in one chunk of 6.
    for asked, width, passes, predicted in (
        (0.02, 6, 2, 0.03),
        (0.015, 4, 2, 0.01),
        (0.1, 4, 1, 0.2),
        (1e-9, 4, 3, 1e-4),
    ):
        near = near_error(found, asked)
        assert near is not None
        plan, error = near
        assert error == pytest.approx(predicted, rel=1e-2)
        tokens = (4, 2) if width == 4 else (6,)
        segments = tuple(Chunk(tokens=count, passes=passes, guess="zeros") for count in tokens)
        assert plan == DecodePlan(blocks=(BlockPlan(block=3, segments=segments),))


def test_errors_of_rounding_tell_nothing_about_growth() -> None:
    assert near_error(candidates(curve(0, 6, 1e-12, 0.0)), 1e-3) is None
    assert near_error(candidates(), 1e-3) is None
    near = near_error(candidates(curve(0, 6, 1.1e-10, 0.0)), 1e-3)
    assert near is not None and near[1] == pytest.approx(1.1e-10**0.5)
