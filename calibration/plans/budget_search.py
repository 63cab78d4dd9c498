"""The fastest decode plan whose finished samples stay within a budget of error.

What a path's errors add up to is a prediction. So the path is run, and what the search may spend is tightened or loosened until
the measured error is within the budget and close to it.
"""

from collections.abc import Callable, Sequence

import numpy as np

from starflow.calibration.plans.search import Edge, cheapest_path
from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL
from starflow.runtime.plans.decode_plan import BlockPlan, DecodePlan, Segment, Steps

ROUNDS = 8  # searches
CLOSE = 0.7  # share of the budget from which on a measured error is good enough to stop
AIM = 0.85  # share of the budget that the next search aims for

PlanEdge = Edge[tuple[int, Segment]]


def fastest_plan(
    tokens: int, edges: Sequence[PlanEdge], budget: float, measure: Callable[[DecodePlan], float]
) -> DecodePlan:
    """Search, measure, tighten or loosen, search again.

    Args:
        tokens: Number of tokens of all flow blocks.
        edges: Ways over them, with a flow block and a segment each.
        budget: Largest relative error of the finished samples.
        measure: Runs a plan and returns that error.

    Returns:
        The plan of least predicted time among those that were measured to be within the budget; none of them: sequential.
    """
    best, best_time, allowed = SEQUENTIAL, float("inf"), budget
    tried: set[DecodePlan] = set()
    for _ in range(ROUNDS):
        path = cheapest_path(tokens, edges, allowed**2)
        if path is None:
            break
        plan = plan_of(path)
        if plan in tried:
            allowed *= 0.8
            continue
        tried.add(plan)
        error, time = measure(plan), sum(edge.milliseconds for edge in path)
        if error <= budget and time < best_time:
            best, best_time = plan, time
        if CLOSE * budget <= error <= budget:
            break
        allowed *= float(np.clip(AIM * budget / max(error, 1e-12), 0.2, 3.0))
    return best


def plan_of(path: Sequence[PlanEdge]) -> DecodePlan:
    """A path as a plan: neighbouring steps joined, flow blocks of nothing but steps left out."""
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
