"""How near samples are to those of the exact sampler, as a distribution."""

import numpy as np
from numpy.typing import NDArray

from starflow.calibration.frechet import frechet_distance

SEEDS = (2**64 - 2, 2**64 - 1)  # of two sets of noise; what was learned or searched has other seeds
COMPONENTS = 64  # principal components of the exact sampler's data that distances are measured in
NEIGHBOURS = 3  # of a sample, as far as its neighbourhood reaches


class Distribution:
    """The finished data of the exact sampler, and how near others come to them as a distribution.

    Args:
        data: [N, C, H, W] of the exact sampler.
        conditions: [N], which of them share a condition.
        others: As many of the exact sampler from other noise. Axes are those of both
            sets, or each would look wider along its own.
    """

    def __init__(self, data: NDArray[np.float32], conditions: NDArray, others: NDArray[np.float32]) -> None:
        both = np.concatenate([data, others])
        flat = both.reshape(len(both), -1).astype(np.float64)
        self._mean = flat.mean(0)
        self._axes = np.linalg.svd(flat - self._mean, full_matrices=False)[2][:COMPONENTS]
        self.conditions = conditions
        self._features = self.features(data)
        self._spread = within(self._features, conditions)

    def features(self, data: NDArray[np.float32]) -> NDArray[np.float64]:
        """Data in the principal components, [N, K]."""
        features: NDArray[np.float64] = (data.reshape(len(data), -1) - self._mean) @ self._axes.T
        return features

    def frechet(self, data: NDArray[np.float32]) -> float:
        """The Frechet distance."""
        return frechet_distance(self.features(data), self._features)

    def diversity(self, data: NDArray[np.float32]) -> float:
        """Standard deviation within a condition, over the exact sampler's; of data of the same conditions."""
        return within(self.features(data), self.conditions) / self._spread

    def precision_and_recall(self, data: NDArray[np.float32]) -> tuple[float, float]:
        """Share of data within the exact sampler's neighbourhoods, and of its own within theirs (Kynkäänniemi et al., 2019)."""
        features = self.features(data)
        return coverage(self._features, features), coverage(features, self._features)


def condition_groups(condition: NDArray | None, count: int) -> NDArray[np.int64]:
    """Which of `count` images share a condition, [N]; condition [N, ...], or None where all share one."""
    if condition is None:
        return np.zeros(count, np.int64)
    return np.unique(condition, axis=0, return_inverse=True)[1].reshape(-1)


def within(features: NDArray[np.float64], conditions: NDArray) -> float:
    """Root of the mean variance of a feature among those of one condition that has several."""
    groups = [features[conditions == each] for each in np.unique(conditions)]
    return float(np.sqrt(np.mean([group.var(axis=0, ddof=1).sum() for group in groups if len(group) > 1])))


def coverage(centres: NDArray[np.float64], points: NDArray[np.float64]) -> float:
    """Share of points that lie no farther from some centre than its `NEIGHBOURS`-th nearest other centre."""
    radius = np.sort(_squared_distances(centres, centres), axis=1)[:, NEIGHBOURS]
    return float((_squared_distances(points, centres) <= radius).any(axis=1).mean())


def _squared_distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    squared: NDArray[np.float64] = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return squared.clip(min=0)
