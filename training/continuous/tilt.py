"""How far Gibbs weights bend the marginals, and the kappa where they begin to.

Weighted flow matching learns to transport the *tilted* marginals q(x1) w(x1), w(x1) = E_{x0} w(x0, x1), and likewise for x0
(Calvo-Ordonez et al., 2025, arXiv 2507.22270). Where the marginal weight is constant nothing is tilted; its variance over
its squared mean says how far from constant it is. A small kappa gives straight paths and a strong tilt, a large one is
plain flow matching: the elbow of the curve is the smallest kappa that still tilts little.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from starflow.runtime.plain.errors import UsageError
from starflow.training.continuous.coupling import epsilon_of

KAPPAS = tuple(float(value) for value in np.geomspace(0.05, 20, 40))


@dataclass(frozen=True)
class Tilt:
    """Relative variance of both marginal weights: Var w(x) / (E w(x))^2; 0 is no tilt."""

    noise: float
    data: float

    @property
    def worst(self) -> float:
        return max(self.noise, self.data)


@dataclass(frozen=True)
class TiltCurve:
    """The tilt at every kappa, increasing, and the index of the kappa at the elbow of the curve."""

    kappas: tuple[float, ...]
    tilts: tuple[Tilt, ...]
    elbow: int

    @property
    def kappa(self) -> float:
        return self.kappas[self.elbow]


def marginal_tilt(x0: Tensor, x1: Tensor, epsilon: float) -> Tilt:
    """Estimate the tilt from N noise and N data samples, all pairs, in float64.

    The mean over N partners is itself uncertain, which adds the mean of Var(w | x) / N to the variance between samples; this
    part is subtracted.

    Args:
        x0, x1: [N, ...] independent samples.
        epsilon: Width of the Gibbs kernel.

    Raises:
        UsageError: epsilon is not above 0.
    """
    if not epsilon > 0:
        raise UsageError(f"epsilon: found {epsilon:g}, expected a number above 0")
    log_weights = -torch.cdist(x0.flatten(1).double(), x1.flatten(1).double()) / epsilon
    weights = torch.exp(log_weights - log_weights.max())  # a common factor cancels
    return Tilt(noise=_relative_variance(weights), data=_relative_variance(weights.T))


def _relative_variance(weights: Tensor) -> float:
    """Of the row means of [N, M], which estimate the marginal weight of N samples from M partners each."""
    means = weights.mean(1)
    between = means.var() - weights.var(1).mean() / weights.shape[1]
    return max(0.0, float(between / means.mean().square()))


def tilt_curve(x0: Tensor, x1: Tensor, kappas: Sequence[float] = KAPPAS) -> TiltCurve:
    """The statistic over kappa and its elbow: the point farthest below the chord (Satopaa et al., 2011, "Kneedle").

    Args:
        x0, x1: [N, ...] independent samples of noise and data; a thousand will do.
        kappas: Increasing.
    """
    dimensions = x1[0].numel()
    tilts = tuple(marginal_tilt(x0, x1, epsilon_of(kappa, dimensions)) for kappa in kappas)
    return TiltCurve(tuple(kappas), tilts, elbow_index(kappas, [tilt.worst for tilt in tilts]))


def elbow_index(kappas: Sequence[float], tilts: Sequence[float]) -> int:
    """Index of the lower knee of a falling curve over log kappa.

    The curve is that of tilt / (1 + tilt), the part of its effective samples that a marginal loses: it stays below one where
    the tilt itself runs off by orders of magnitude.
    """
    x = np.log(kappas)
    x = (x - x[0]) / (x[-1] - x[0])
    lost = np.asarray(tilts) / (1 + np.asarray(tilts))
    return int(np.argmax(lost.max() * (1 - x) - lost))


def plot_tilt(curve: TiltCurve, path: Path) -> None:
    """Draw both statistics over kappa, with the chosen one marked, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    axes.semilogx(curve.kappas, [tilt.noise for tilt in curve.tilts], label="noise")
    axes.semilogx(curve.kappas, [tilt.data for tilt in curve.tilts], label="data")
    axes.axvline(curve.kappa, color="black", linestyle=":", label=f"elbow: kappa = {curve.kappa:.2g}")
    axes.set_xlabel("kappa")
    axes.set_ylabel("marginal tilt")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
