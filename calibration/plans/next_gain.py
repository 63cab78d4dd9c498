"""What limits a plan: the smallest budget at which the search finds one that takes much less time."""

from collections.abc import Sequence
from dataclasses import dataclass

from starflow.calibration.plans.budget_search import PlanEdge, plan_of
from starflow.calibration.plans.search import cheapest_path
from starflow.runtime.plans.decode_plan import DecodePlan

MULTIPLES = (1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # of the budget
LEAST = 0.1  # share of the time that a gain must save to be named
MOST_ERROR = 0.5  # samples with a larger relative error are other samples


@dataclass(frozen=True)
class NextGain:
    """A faster plan that a larger budget would allow, by prediction."""

    budget: float  # relative error of the finished samples
    saved: float  # share of the predicted time, without prefill, that it saves
    blocks: tuple[int, ...]  # flow blocks that it decodes in another way, in sampling order


def next_gain(
    tokens: int, edges: Sequence[PlanEdge], budget: float, plan: DecodePlan, milliseconds: float
) -> NextGain | None:
    """The gain that the next larger budget brings; None if no plan is much faster, whatever its error.

    Args:
        tokens: Number of tokens of all flow blocks.
        edges: Ways over them.
        budget: That of the plan.
        plan: What was chosen.
        milliseconds: Its predicted time, without prefill.
    """
    own = {each.block: each for each in plan.blocks}
    for allowed in (multiple * budget for multiple in MULTIPLES):
        path = cheapest_path(tokens, edges, allowed**2) if allowed <= MOST_ERROR else None
        if path is None:
            continue
        saved = 1 - sum(edge.milliseconds for edge in path) / milliseconds
        if saved >= LEAST:
            other = {each.block: each for each in plan_of(path).blocks}
            blocks = dict.fromkeys(edge.what[0] for edge in path)  # in sampling order
            return NextGain(allowed, saved, tuple(block for block in blocks if own.get(block) != other.get(block)))
    return None
