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
from starflow.training.continuous.coupling import Cost, all_costs, epsilon_of

KAPPAS = tuple(float(value) for value in np.geomspace(0.01, 50, 60))
LEAST_PARTNERS = 10  # a mean of fewer effective partners says nothing about a marginal weight
SPAN = 10  # the elbow is sought from the kappa that loses half of the samples to this many times as much


@dataclass(frozen=True)
class Tilt:
    """Relative variance of both marginal weights: Var w(x) / (E w(x))^2; 0 is no tilt."""

    noise: float
    data: float
    partners: float  # effective number of partners behind a marginal weight, on the side that has fewer

    @property
    def worst(self) -> float:
        return max(self.noise, self.data)

    @property
    def collapsed(self) -> bool:
        """Whether so few pairs have all the weight that the estimate means nothing."""
        return not self.partners >= LEAST_PARTNERS


@dataclass(frozen=True)
class TiltCurve:
    """The tilt at every kappa, increasing, and the kappa at the elbow of the curve."""

    kappas: tuple[float, ...]
    tilts: tuple[Tilt, ...]
    kappa: float


def marginal_tilt(x0: Tensor, x1: Tensor, epsilon: float, cost: Cost = "norm") -> Tilt:
    """Estimate the tilt from N noise and N data samples, all pairs, in float64.

    The mean over N partners is itself uncertain, which adds the mean of Var(w | x) / N to the variance between samples; this
    part is subtracted.

    Args:
        x0, x1: [N, ...] independent samples.
        epsilon: Width of the Gibbs kernel.
        cost: What the kernel measures.

    Raises:
        UsageError: epsilon is not above 0.
    """
    if not epsilon > 0:
        raise UsageError(f"epsilon: found {epsilon:g}, expected a number above 0")
    log_weights = -all_costs(x0.double(), x1.double(), cost) / epsilon
    weights = torch.exp(log_weights - log_weights.max())  # a common factor cancels
    sides = (_relative_variance(weights), _relative_variance(weights.T))
    return Tilt(noise=sides[0][0], data=sides[1][0], partners=min(partners for _, partners in sides))


def _relative_variance(weights: Tensor) -> tuple[float, float]:
    """Of the row means of [N, M], which estimate the marginal weight of N samples from M partners; and M in effect."""
    means, partners = weights.mean(1), weights.shape[1]
    within = weights.var(1).mean()
    between, square = means.var() - within / partners, means.mean().square()
    return max(0.0, float(between / square)), partners / (1 + float(within / square))


def tilt_curve(x0: Tensor, x1: Tensor, kappas: Sequence[float] = KAPPAS, cost: Cost = "norm") -> TiltCurve:
    """The statistic over kappa and its elbow: the point farthest below a chord (Satopaa et al., 2011, "Kneedle").

    Args:
        x0, x1: [N, ...] independent samples of noise and data; a thousand will do.
        kappas: Increasing.
        cost: What the kernel measures.

    Raises:
        UsageError: these samples and kappas do not show the elbow; the message says what does.
    """
    dimensions = x1[0].numel()
    tilts = tuple(marginal_tilt(x0, x1, epsilon_of(kappa, dimensions, cost), cost) for kappa in kappas)
    seen = [(kappa, tilt.worst) for kappa, tilt in zip(kappas, tilts, strict=True) if not tilt.collapsed]
    if not seen:
        raise UsageError(
            f"kappa {kappas[0]:.3g} to {kappas[-1]:.3g}: fewer than {LEAST_PARTNERS} of {len(x1)} pairs have all the weight;"
            " take larger kappas, or more samples"
        )
    return TiltCurve(tuple(kappas), tilts, elbow_kappa(*zip(*seen, strict=True)))


def elbow_kappa(kappas: Sequence[float], tilts: Sequence[float]) -> float:
    """The lower knee of a falling curve over log kappa, whose ends do not depend on the grid.

    The curve is that of tilt / (1 + tilt), the part of its effective samples that a marginal loses: it stays below one where
    the tilt itself runs off by orders of magnitude. The chord begins where half of them are lost and ends at ten times that
    kappa.

    Raises:
        UsageError: the curve does not reach from one end to the other.
    """
    x, lost = np.log(kappas), np.asarray(tilts) / (1 + np.asarray(tilts))
    below = np.flatnonzero(lost < 0.5)
    if not len(below) or below[0] == 0:
        wanted = "larger" if not len(below) else "smaller"
        raise UsageError(
            f"kappa {kappas[0]:.3g} to {kappas[-1]:.3g}: the tilt does not fall through 1 there; take {wanted} kappas, or more"
            " samples, which show the tilt at smaller ones"
        )
    last = below[0]
    start = np.interp(-0.5, -lost[last - 1 : last + 1], x[last - 1 : last + 1])
    end = start + np.log(SPAN)
    if end > x[-1]:
        raise UsageError(
            f"kappa up to {kappas[-1]:.3g}: expected kappas up to {np.exp(end):.3g}, where the curve is flat"
        )
    place = np.linspace(start, end, 400)
    curve = np.interp(place, x, lost)
    chord = curve[0] + (curve[-1] - curve[0]) * (place - start) / (end - start)
    return float(np.exp(place[np.argmax(chord - curve)]))


def plot_tilt(curve: TiltCurve, path: Path) -> None:
    """Draw both statistics over kappa, with the chosen one marked, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    seen = [(kappa, tilt) for kappa, tilt in zip(curve.kappas, curve.tilts, strict=True) if not tilt.collapsed]
    axes.semilogx([kappa for kappa, _ in seen], [tilt.noise for _, tilt in seen], label="noise")
    axes.semilogx([kappa for kappa, _ in seen], [tilt.data for _, tilt in seen], label="data")
    axes.axvline(curve.kappa, color="black", linestyle=":", label=f"elbow: kappa = {curve.kappa:.2g}")
    axes.set_xlabel("kappa")
    axes.set_ylabel("marginal tilt")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
