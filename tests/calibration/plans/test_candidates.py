"""Edges of known curves and trials."""

import numpy as np
import pytest

from starflow.calibration.plans.candidates import BlockCandidates, block_curve, candidate_edges
from starflow.calibration.plans.convergence import ChunkCurve, WindowTrial
from starflow.runtime.plans.calibrated_decode_plan import BlockCost, RunCost
from starflow.runtime.plans.decode_plan import Chunk, Steps, Window

COST = BlockCost(
    block=2,
    prefill_milliseconds=9.0,
    step_milliseconds=1.0,
    runs=(RunCost(tokens=4, milliseconds=2.0), RunCost(tokens=6, milliseconds=3.0)),
)
# Two images in a batch; the first converges a pass earlier.
HEAD = ChunkCurve(
    0, 4, np.array([[1e-2, 1e-6, 1e-8], [3e-2, 3e-4, 3e-6]]), np.array([[1.0, 1e-3, 1e-7], [1.0, 0.1, 1e-3]])
)
REST = ChunkCurve(4, 2, np.array([[4e-2, 0.0], [4e-2, 0.0]]), np.array([[1.0, 1e-9], [1.0, 1e-9]]))
WINDOW = Window(tokens=6, width=4, advances=(1, 2, 3))
FOUND = BlockCandidates(2, 6, "zeros", {}, (HEAD, REST), (WindowTrial(WINDOW, ((1, 2, 3),), 5e-5),))
GAINS = {"chunk": 2.0, "window": 3.0}


@pytest.fixture
def edges() -> dict[object, tuple[int, int, float, float]]:
    found = candidate_edges(FOUND, COST, 100, 2, GAINS, fixed=False)
    return {edge.what: (edge.start, edge.end, edge.milliseconds, edge.error) for edge in found}


def test_steps_cost_a_step_and_no_error() -> None:
    steps = [
        edge for edge in candidate_edges(FOUND, COST, 100, 2, GAINS, fixed=True) if isinstance(edge.what[1], Steps)
    ]
    assert [(edge.start, edge.end, edge.milliseconds, edge.error) for edge in steps] == [
        (100 + token, 101 + token, 1.0, 0.0) for token in range(6)
    ]


def test_a_chunk_costs_its_passes_and_the_mean_error_of_the_images(
    edges: dict[object, tuple[int, int, float, float]],
) -> None:
    assert edges[2, Chunk(tokens=4, passes=2, guess="zeros")] == pytest.approx((100, 104, 4.0, 4 * (1e-6 + 3e-4) / 2))
    assert edges[2, Chunk(tokens=4, passes=3, guess="zeros")] == pytest.approx((100, 104, 6.0, 4 * (1e-8 + 3e-6) / 2))
    # Two tokens lie on the line from one step to a pass of four.
    assert edges[2, Chunk(tokens=2, passes=1, guess="zeros")] == pytest.approx((104, 106, 4 / 3, 4 * 4e-2))


def test_a_chunk_with_a_tolerance_waits_for_its_slowest_image(
    edges: dict[object, tuple[int, int, float, float]],
) -> None:
    chunk = Chunk(tokens=4, passes=3, tolerance=1e-2, guess="zeros", expected=3.0)
    assert edges[2, chunk] == pytest.approx((100, 104, 6.0, 4 * (1e-6 + 3e-6) / 2)), (
        "the first one keeps its second pass"
    )


def test_a_window_costs_the_widths_it_runs(edges: dict[object, tuple[int, int, float, float]]) -> None:
    window = WINDOW.model_copy(update={"expected": 3.0})
    assert edges[2, window] == pytest.approx((100, 106, 2.0 + 2.0 + (1 + 2 / 3), 9 * 5e-5))


def test_fixed_plans_have_no_tolerance() -> None:
    segments = [edge.what[1] for edge in candidate_edges(FOUND, COST, 0, 2, GAINS, fixed=True)]
    assert all(not isinstance(segment, Chunk | Window) or segment.tolerance is None for segment in segments)


def test_a_blocks_curve_sums_its_chunks() -> None:
    expected = [np.sqrt(2e-2 + 4e-2), np.sqrt((1e-6 + 3e-4) / 2), np.sqrt((1e-8 + 3e-6) / 2)]
    assert block_curve((HEAD, REST), 4) == pytest.approx(expected)
