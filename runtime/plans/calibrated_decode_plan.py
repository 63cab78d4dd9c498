"""A decode plan as a bundle keeps it: the plan, the costs it was chosen by, and what was measured."""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from starflow.runtime.plain.validation import Part
from starflow.runtime.plans.calibrated_plan import CalibratedPlan
from starflow.runtime.plans.decode_plan import BlockPlan, Chunk, DecodePlan, Segment, Steps, Student, Window


class RunCost(Part):
    """Time of one pass over a number of tokens."""

    tokens: int = Field(ge=1)
    milliseconds: float = Field(ge=0)


class BlockCost(Part):
    """Times of one flow block, measured in the middle of its sequence.

    Attributes:
        block: Index of the flow block.
        prefill_milliseconds: Time between two sequences.
        step_milliseconds: Time of a token that is decoded alone.
        runs: Times of passes over several tokens, in increasing order of tokens.
    """

    block: int = Field(ge=0)
    prefill_milliseconds: float = Field(ge=0)
    step_milliseconds: float = Field(ge=0)
    runs: tuple[RunCost, ...]

    def run(self, tokens: int) -> float:
        """Milliseconds of a pass over `tokens` tokens, interpolated linearly between measured ones."""
        if tokens == 1 or not self.runs:
            return self.step_milliseconds * tokens
        counts = [1, *(run.tokens for run in self.runs)]
        times = [self.step_milliseconds, *(run.milliseconds for run in self.runs)]
        return float(np.interp(tokens, counts, times))


class CalibratedDecodePlan(CalibratedPlan):
    """A calibrated decode plan. Its reference is sequential decoding.

    Attributes:
        predicted_milliseconds: Time that `costs` predict for the plan.
        sequential_milliseconds: Time of sequential decoding, measured in turn with the plan.
        costs: Times of passes on the machine it was calibrated on.
        blocks: The blocks of the plan.
    """

    predicted_milliseconds: float = Field(gt=0)
    sequential_milliseconds: float = Field(gt=0)
    costs: tuple[BlockCost, ...]
    blocks: tuple[BlockPlan, ...]

    @property
    def plan(self) -> DecodePlan:
        return DecodePlan(blocks=self.blocks)


def segment_passes(segment: Segment) -> float | None:
    """Number of passes of a segment, that of a student included; None if it depends on the tokens and was not counted."""
    if isinstance(segment, Steps):
        return segment.tokens
    if isinstance(segment, Student):
        return 1 + segment.passes
    if segment.expected is not None:
        return segment.expected
    if isinstance(segment, Window):
        return None if segment.advances is None else len(segment.advances)
    if segment.tolerance is not None:
        return None
    return segment.passes + (segment.caches == "exact" and segment.passes < segment.tokens)


def segment_milliseconds(segment: Segment, cost: BlockCost) -> float | None:
    """Predicted time of a segment; None if its number of passes is not known, or that of a student, which is not timed."""
    if isinstance(segment, Steps):
        return segment.tokens * cost.step_milliseconds
    if isinstance(segment, Student):
        return None
    if isinstance(segment, Window) and segment.advances is not None:
        return sum(cost.run(count) for _, count in segment.schedule())
    passes = segment_passes(segment)
    width = segment.tokens if isinstance(segment, Chunk) else min(segment.width, segment.tokens)
    return None if passes is None else passes * cost.run(width)


def predicted_milliseconds(plan: DecodePlan, costs: Sequence[BlockCost], tokens: dict[int, int]) -> float | None:
    """Predicted time of a batch; None if costs or passes are not known."""
    if {cost.block for cost in costs} != set(tokens):
        return None
    total = 0.0
    for cost in costs:
        total += cost.prefill_milliseconds
        for segment in plan.segments(cost.block, tokens[cost.block]):
            milliseconds = segment_milliseconds(segment, cost)
            if milliseconds is None:
                return None
            total += milliseconds
    return total
