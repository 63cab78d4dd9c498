"""Objectives of continuous flows in two dimensions: how good, how straight, how many steps, how fast to train.

Trains CFM, OT-CFM (exact and Sinkhorn) and W-CFM (plain weights, exact noise, learned potentials) between pairs of distributions
of the plane over several seeds, and reports mean and standard deviation of
  W2           2-Wasserstein distance of samples to held-out data, exact over as many points (of data to data: the floor);
  energy       (E int |v|^2 dt - W2^2) / W2^2 with W2 between noise and data (Tong et al., 2024), with its sign: 0 for straight optimal
               paths, negative where paths lead to a nearer distribution;
  own          the same with W2 between noise and the flow's own end points, below which no paths can be;
  bend         S = 1 - E |x1 - x0|^2 / E int |v|^2 dt of the flow's paths, 0 where all of them are straight and even;
  steps        Euler steps until the end points are within 2 % of the data's spread of a fine integration (root mean square);
and the time of a training step by batch size. Every seed has its own training and its own evaluation points, so the standard
deviation covers both; the W2 of the first seed's network over all evaluation points shows the share of the latter.
Finished runs are kept in the output folder, and the same command goes on from there.

Example: python -m benchmarks.two_dimensional --out out/two-dimensional
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from starflow.training.continuous.config import ContinuousMlpConfig
from starflow.training.continuous.flow_matching import FlowMatching
from starflow.training.continuous.mlp import ContinuousMlp
from starflow.training.continuous.objective_config import ObjectiveConfig, WeightedCfmConfig
from starflow.training.continuous.tilt import plot_tilt, tilt_curve
from starflow.training.objective import Share
from starflow.training.points import POINT_SETS

matplotlib.use("Agg")
from matplotlib import pyplot

OBJECTIVES = {"cfm": "CFM", "ot-cfm": "OT-CFM", "w-cfm": "W-CFM"}
COLOURS = {"cfm": "tab:blue", "ot-cfm": "tab:orange", "w-cfm": "tab:green"}
PAIRS = ("eight_gaussians:moons", "normal:eight_gaussians", "gaussian_mixture:five_gaussians")
STEP_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128)
FINE_STEPS = 100
TOLERANCE = 0.02  # of the data's standard deviation

FIGURES = {
    "w2": "W2 to held-out",
    "path_energy": "path energy",
    "own_energy": "to own ends",
    "bend": "bend",
    "steps": "Euler steps",
}

Runs = dict[str, list[dict[str, float]]]  # the figures of every seed, by objective
Draw = Callable[[int, torch.Generator], Tensor]


def settings_of(kappa: float) -> dict[str, dict[str, Any]]:
    """The objectives that are compared, by their names; `kappa` is the elbow's."""
    weighted = {"kind": "w-cfm", "potential_steps": 1000}
    return {
        "CFM": {"kind": "cfm"},
        "OT-CFM": {"kind": "ot-cfm"},
        "OT-CFM, Sinkhorn": {"kind": "ot-cfm", "solver": "sinkhorn", "kappa": 0.5},
        f"W-CFM, kappa {kappa:.2g}": {**weighted, "kappa": kappa},
        f"W-CFM, kappa {kappa:.2g}, exact noise": {**weighted, "kappa": kappa, "marginals": "noise"},
        "W-CFM, kappa 0.5": {**weighted, "kappa": 0.5},
        "W-CFM, kappa 0.5, learned": {**weighted, "kappa": 0.5, "marginals": "learned"},
        "W-CFM, squared, kappa 0.5, learned": {**weighted, "kappa": 0.5, "cost": "squared", "marginals": "learned"},
    }


def objective_of(settings: dict[str, Any]) -> FlowMatching:
    return FlowMatching(TypeAdapter(ObjectiveConfig).validate_python(settings))


def new_network() -> ContinuousMlp:
    return ContinuousMlp(ContinuousMlpConfig(dimensions=2, channels=128, layers=3))


def train(
    objective: FlowMatching, draw: tuple[Draw, Draw], steps: int, batch: int, seed: int, rate: float = 2e-3
) -> tuple[ContinuousMlp, list[float]]:
    """Train a network of 75 k parameters on fresh points; return it with the seconds of every step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = new_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    config, seconds = objective.config, []
    if isinstance(config, WeightedCfmConfig) and config.marginals == "learned":
        for _ in range(config.potential_steps):
            objective.learn_potentials(*(each(batch, generator) for each in draw))
    for _ in range(steps):
        x0, x1 = (each(batch, generator) for each in draw)
        start = time.perf_counter()
        (loss,) = objective.losses_from(x0, network, x1, None, generator, Share(batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        schedule.step()
    return network.eval(), seconds


def squared_wasserstein(one: Tensor, other: Tensor) -> float:
    """W2^2 of two sets of equally many points: the least mean squared distance over all pairings, exact."""
    cost = torch.cdist(one.double(), other.double()).square().numpy()
    return float(cost[linear_sum_assignment(cost)].mean())


@torch.inference_mode()
def paths(network: ContinuousMlp, x0: Tensor, steps: int = FINE_STEPS) -> tuple[Tensor, float]:
    """Midpoint paths [steps + 1, B, 2] from x0, and their energy E int |v|^2 dt."""
    h, x, states, energy = 1 / steps, x0, [x0], 0.0
    for index in range(steps):
        t = torch.full((len(x),), index * h)
        v = network(x + 0.5 * h * network(x, t), t + 0.5 * h)
        energy += h * float(v.square().sum(1).mean())
        x = x + h * v
        states.append(x)
    return torch.stack(states), energy


@torch.inference_mode()
def euler(network: ContinuousMlp, x: Tensor, steps: int) -> Tensor:
    for index in range(steps):
        x = x + network(x, torch.full((len(x),), index / steps)) / steps
    return x


def steps_needed(network: ContinuousMlp, x0: Tensor, end: Tensor) -> int:
    """The fewest Euler steps within the tolerance, of those tried; the last of them stands for more."""
    allowed = TOLERANCE * float(end.std(0).square().sum().sqrt())
    for steps in STEP_COUNTS:
        if float((euler(network, x0, steps) - end).square().sum(1).mean().sqrt()) <= allowed:
            return steps
    return STEP_COUNTS[-1]


def measure(network: ContinuousMlp, x0: Tensor, held_out: Tensor) -> dict[str, float]:
    """The figures of a trained network, from noise x0 and as many held-out points."""
    states, energy = paths(network, x0)
    end = states[-1]
    optimal, own = squared_wasserstein(x0, held_out), squared_wasserstein(x0, end)
    return {
        "w2": squared_wasserstein(end, held_out) ** 0.5,
        "path_energy": (energy - optimal) / optimal,
        "own_energy": (energy - own) / own,
        "bend": 1 - float((end - x0).square().sum(1).mean()) / energy,
        "steps": float(steps_needed(network, x0, end)),
    }


def step_times(draw: tuple[Draw, Draw], batches: list[int]) -> dict[str, dict[str, float]]:
    """Median milliseconds of a training step, by objective and batch."""
    times: dict[str, dict[str, float]] = {kind: {} for kind in OBJECTIVES}
    for batch in batches:
        for kind in OBJECTIVES:
            _, seconds = train(
                objective_of({"kind": kind} | ({"kappa": 1.0} if kind == "w-cfm" else {})),
                draw,
                7 if batch > 1024 else 30,
                batch,
                0,
            )
            times[kind][str(batch)] = 1e3 * statistics.median(seconds[2:])
    return times


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3g} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.2g}"


def table(pairs: dict[str, Any]) -> str:
    lines = ["| pair | objective | " + " | ".join(FIGURES.values()) + " |", "|---" * (len(FIGURES) + 2) + "|"]
    for pair, part in pairs.items():
        for name, runs in part["runs"].items():
            figures = [spread([run[figure] for run in runs]) for figure in FIGURES]
            lines.append(f"| {pair} | {name} | {' | '.join(figures)} |")
        empty = " |" * (len(FIGURES) - 1)
        lines.append(f"| {pair} | data against data | {spread(part['data_against_data_w2'])} |{empty}")
        lines.append(f"| {pair} | CFM of one seed, other points | {spread(part['evaluation_w2'])} |{empty}")
    return "\n".join(lines)


def time_table(times: dict[str, dict[str, float]]) -> str:
    batches = list(times["cfm"])
    lines = ["| ms a step at batch | " + " | ".join(batches) + " |", "|---" * (len(batches) + 1) + "|"]
    for kind, by_batch in times.items():
        lines.append(f"| {OBJECTIVES[kind]} | " + " | ".join(f"{value:.2f}" for value in by_batch.values()) + " |")
    return "\n".join(lines)


def plot_figures(runs: Runs, times: dict[str, dict[str, float]], out: Path) -> None:
    """The figures of a pair as bars with spread, and the time of a step over the batch."""
    shown = {name: FIGURES[name] for name in ("w2", "own_energy", "steps")}
    figure, axes = pyplot.subplots(1, 4, figsize=(13, 4), layout="constrained")
    colours = [COLOURS[name.split(",")[0].lower()] for name in runs]
    for place, (name, title) in zip(axes, shown.items(), strict=False):
        values = [[run[name] for run in each] for each in runs.values()]
        spreads = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
        means = [statistics.mean(each) for each in values]
        place.bar([label.replace(", ", "\n") for label in runs], means, yerr=spreads, color=colours, capsize=4)
        place.set_title(title, fontsize=10)
        place.tick_params(axis="x", labelsize=7, rotation=90)
    for kind, by_batch in times.items():
        batches = [int(batch) for batch in by_batch]
        axes[3].loglog(batches, list(by_batch.values()), marker="o", color=COLOURS[kind], label=OBJECTIVES[kind])
    axes[3].set_title("ms a training step, by batch", fontsize=10)
    axes[3].legend(fontsize=8)
    figure.savefig(out / "figures.png", dpi=90)
    pyplot.close(figure)


def plot_paths(networks: dict[str, ContinuousMlp], x0: Tensor, held_out: Tensor, path: Path) -> None:
    """Paths of the same noise under every objective, side by side."""
    rows = -(-len(networks) // 2)
    figure, axes = pyplot.subplots(rows, 2, figsize=(8, 4 * rows), layout="constrained", squeeze=False)
    for place, (name, network) in zip(axes.flat, networks.items(), strict=False):
        states: NDArray[np.float32] = paths(network, x0)[0].numpy()
        place.scatter(*held_out.T.numpy(), s=4, color="tab:orange", alpha=0.4, linewidths=0)
        place.plot(states[:, :, 0], states[:, :, 1], color="grey", linewidth=0.4, alpha=0.7)
        place.scatter(*states[0].T, s=5, color="black", linewidths=0)
        place.scatter(*states[-1].T, s=6, color="tab:blue", linewidths=0)
        place.set_title(name)
        place.set_aspect("equal")
    for place in axes.flat:
        place.axis("off")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def evaluation_points(draw: tuple[Draw, Draw], points: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, held-out data and other data of a seed, [points, 2] each."""
    generator = torch.Generator().manual_seed(1_000_000 + seed)
    return draw[0](points, generator), draw[1](points, generator), draw[1](points, generator)


def compare(pair: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and measure every objective on a pair of distributions; draw tilt and paths."""
    source, target = pair.split(":")
    draw = (POINT_SETS[source], POINT_SETS[target])
    generator = torch.Generator().manual_seed(999_999)
    curve = tilt_curve(draw[0](1024, generator), draw[1](1024, generator))
    plot_tilt(curve, arguments.out / f"tilt-{source}-{target}.png")
    folder = arguments.out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings_of(curve.kappa)
    points = [evaluation_points(draw, arguments.points, seed) for seed in range(arguments.seeds)]
    runs: Runs = {name: [] for name in settings}
    for seed in range(arguments.seeds):
        for name, objective in settings.items():
            stem = f"{source}-{target}, {name}, {arguments.steps} steps of {arguments.batch}, seed {seed}"
            kept = folder / f"{stem}.json"
            if not kept.exists():
                network, _ = train(objective_of(objective), draw, arguments.steps, arguments.batch, seed)
                torch.save(network.state_dict(), folder / f"{stem}.pt")
                kept.write_text(json.dumps(measure(network, *points[seed][:2])))
            runs[name].append(json.loads(kept.read_text()))
            print(f"{stem}: {runs[name][-1]}", flush=True)
    first = {}
    for name in settings:
        first[name] = new_network()
        stem = f"{source}-{target}, {name}, {arguments.steps} steps of {arguments.batch}, seed 0"
        first[name].load_state_dict(torch.load(folder / f"{stem}.pt", weights_only=True))
    plot_paths(first, points[0][0][:250], points[0][1], arguments.out / f"paths-{source}-{target}.png")
    ends = [(paths(first["CFM"], x0)[0][-1], held_out) for x0, held_out, _ in points]
    return {
        "elbow_kappa": curve.kappa,
        "data_against_data_w2": [squared_wasserstein(one, other) ** 0.5 for _, one, other in points],
        "evaluation_w2": [squared_wasserstein(*each) ** 0.5 for each in ends],
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/two-dimensional"))
    parser.add_argument("--part", choices=("quality", "times"), help="do one part; the report takes up the other one")
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--times", type=int, nargs="+", default=[64, 256, 1024, 4096], help="batches to time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "report.json"
    report = json.loads(path.read_text()) if arguments.part and path.exists() else {}
    if arguments.part != "times":
        report["settings"] = {"steps": arguments.steps, "batch": arguments.batch, "points": arguments.points}
        report["pairs"] = {pair: compare(pair, arguments) for pair in arguments.pairs}
    if arguments.part != "quality":
        source, target = arguments.pairs[0].split(":")
        report["milliseconds_a_step"] = step_times((POINT_SETS[source], POINT_SETS[target]), arguments.times)
    path.write_text(json.dumps(report, indent=1) + "\n")
    text = "\n\n".join(
        ([table(report["pairs"])] if "pairs" in report else [])
        + ([time_table(report["milliseconds_a_step"])] if "milliseconds_a_step" in report else [])
    )
    (arguments.out / "report.md").write_text(text + "\n")
    if {"pairs", "milliseconds_a_step"} <= report.keys():
        plot_figures(report["pairs"][arguments.pairs[0]]["runs"], report["milliseconds_a_step"], arguments.out)
    print(text)


if __name__ == "__main__":
    main()
