"""How near the samples of a decode plan are to those decoded token by token, as a distribution."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from starflow.calibration.distribution import SEEDS, Distribution, condition_groups
from starflow.calibration.plans.runs import PlanRuns
from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL
from starflow.runtime.noise import draw_noise
from starflow.runtime.plans.decode_plan import DecodePlan

PER_IMAGE = 4  # samples for each image that a plan is checked on, which are few
USUAL, LEAST = 128, 16  # samples: so many at least if time allows, and none rather than fewer than these
SECONDS = 12  # that all of them may take


@dataclass(frozen=True)
class SampleDistribution:
    """Samples by a plan against those decoded token by token from the same noise and conditions."""

    samples: int  # of each
    frechet: float  # Fréchet distance in the principal components of those decoded token by token
    frechet_floor: float  # the same between two sets decoded token by token
    diversity: float  # standard deviation within a condition, over that of those decoded token by token


def samples_to_compare(images: int, batch: int, milliseconds: float) -> int:
    """Number of samples of each set, in whole batches; 0 if they would take too long.

    Args:
        images: That the plan was checked on.
        batch: Images in a batch.
        milliseconds: That one batch of every set takes together.
    """
    wanted = -(-max(USUAL, PER_IMAGE * images) // batch)
    count = min(wanted, int(1000 * SECONDS / milliseconds)) * batch
    return count if count >= LEAST else 0


def compare_samples(runs: PlanRuns, plan: DecodePlan, count: int) -> SampleDistribution:
    """Sample by a plan and token by token, with the conditions of the runs' case in turn, each several times."""
    case = runs.case
    index = np.arange(count) % max(1, min(len(case.noise), count // PER_IMAGE))
    condition = None if case.condition is None else case.condition[index]

    def sample(way: DecodePlan, seed: int) -> NDArray[np.float32]:
        noise = draw_noise(case.noise.shape[1:], count, seed)
        drawn = replace(case, noise=noise, condition=condition, seed=seed)
        return PlanRuns(runs.bundle, runs.variant, runs.backend, drawn).sample(way)[0]

    data, others = (sample(SEQUENTIAL, seed) for seed in SEEDS)
    planned = sample(plan, SEEDS[0])
    exact = Distribution(data, condition_groups(condition, count), others)
    return SampleDistribution(count, exact.frechet(planned), exact.frechet(others), exact.diversity(planned))
