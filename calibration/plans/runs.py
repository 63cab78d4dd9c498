"""What the calibration of a plan is asked for, and plans as they run: samples, passes of the networks, and times."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.base import Backend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.diagnostics.take_turns import Lap, Times, take_turns
from starflow.runtime.plans.decode_plan import DecodePlan
from starflow.runtime.plans.integration_plan import AdaptiveSteps, FixedSteps
from starflow.runtime.sampler import Sampler
from starflow.runtime.traces.case import Case

Plan = DecodePlan | FixedSteps | AdaptiveSteps


@dataclass(frozen=True)
class PlanOptions:
    """Options of every family; `widths` and `fixed` are for decode plans."""

    budget: float = 1e-3  # largest relative error of finished samples
    repetitions: int = 5
    widths: tuple[int, ...] = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # numbers of tokens in a pass to try
    # Whether the number of passes must be fixed beforehand, for devices that should not wait for the host; plans for
    # a GPU are always fixed.
    fixed: bool = False


@dataclass(frozen=True)
class Measured:
    """A plan as it ran."""

    error: float  # ||x - reference|| / ||reference|| over the samples
    passes: dict[int, float]  # network passes of each flow block, the mean over the batches


@dataclass
class PlanRuns:
    """Runs plans of either family on the samples of a case, and compares them with those of a reference plan."""

    bundle: Bundle
    variant: Variant
    backend: Backend
    case: Case
    reference: Plan | None = None
    # One for each plan, so that its students are loaded once.
    _samplers: dict[Plan, Sampler] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.reference is not None:
            self._expected = self.sample(self.reference)[0]

    def measure(self, plan: Plan) -> Measured:
        """Run a plan and compare its samples."""
        x, passes = self.sample(plan)
        return Measured(relative_error(x, self._expected), passes)

    def sample(self, plan: Plan, count: int | None = None, lap: Lap | None = None) -> tuple[NDArray, dict[int, float]]:
        """Sample the first `count` images (by default all).

        Args:
            lap: Ends the time of each flow block.

        Returns:
            Samples [count, *data_shape], and by flow block the passes of a batch, on average.
        """
        case, passes = self.case, dict[int, list[int]]()
        if plan not in self._samplers:
            self._samplers[plan] = Sampler(self.bundle, self.variant, self.backend, plan)
        x = self._samplers[plan].generate(
            case.noise[:count],
            None if case.condition is None else case.condition[:count],
            case.null_condition,
            guidance=case.guidance,
            on_block=None if lap is None else lambda block, _: lap(block),
            on_passes=lambda block, number: passes.setdefault(block, []).append(number),
        )
        return x, {block: statistics.fmean(numbers) for block, numbers in passes.items()}

    def time(self, plans: Sequence[Plan], repetitions: int) -> list[Times]:
        """Time one batch by each plan, in turns."""
        return take_turns([partial(self.sample, plan, self.bundle.manifest.batch) for plan in plans], repetitions)


def relative_error(x: NDArray, reference: NDArray) -> float:
    """||x - reference|| / ||reference||, infinite where x is not finite."""
    wide = reference.astype(np.float64)
    error = float(np.linalg.norm(x - wide) / np.linalg.norm(wide))
    return error if np.isfinite(error) else float("inf")
