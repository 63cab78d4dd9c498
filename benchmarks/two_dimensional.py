"""Three objectives of continuous flows in two dimensions: how good, how straight, how many steps, how fast to train.

Trains CFM, OT-CFM and W-CFM between two distributions of the plane over several seeds, and reports mean and spread of
  W2       2-Wasserstein distance of samples to held-out data, exact over as many points (and of data to data, the floor);
  energy   normalised path energy |E int |v|^2 dt - W2^2| / W2^2 (Tong et al., 2024), 0 for straight optimal paths;
  steps    Euler steps until the end points are within 2 % of the data's spread of a fine integration (root mean square);
and the time of a training step by batch size. Writes a table (Markdown), figures (JSON) and plots (PNG).

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
from starflow.training.continuous.objective_config import ObjectiveConfig
from starflow.training.continuous.tilt import plot_tilt, tilt_curve
from starflow.training.points import POINT_SETS

matplotlib.use("Agg")
from matplotlib import pyplot

OBJECTIVES = {"cfm": "CFM", "ot-cfm": "OT-CFM", "w-cfm": "W-CFM"}
COLOURS = {"cfm": "tab:blue", "ot-cfm": "tab:orange", "w-cfm": "tab:green"}
STEP_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128)
FINE_STEPS = 100
TOLERANCE = 0.02  # of the data's standard deviation

FIGURES = {"w2": "W2 to held-out data", "path_energy": "normalised path energy", "steps": "Euler steps needed"}

Runs = dict[str, list[dict[str, float]]]  # the figures of every seed, by objective
Draw = Callable[[int, torch.Generator], Tensor]


def objective_of(kind: str, kappa: float) -> FlowMatching:
    settings = {"kind": kind} | ({"kappa": kappa} if kind == "w-cfm" else {})
    return FlowMatching(TypeAdapter(ObjectiveConfig).validate_python(settings))


def train(
    objective: FlowMatching, draw: tuple[Draw, Draw], steps: int, batch: int, seed: int, rate: float = 2e-3
) -> tuple[ContinuousMlp, list[float]]:
    """Train a network of 75 k parameters on fresh points; return it with the seconds of every step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = ContinuousMlp(ContinuousMlpConfig(dimensions=2, channels=128, layers=3))
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seconds = []
    for _ in range(steps):
        x0, x1 = (each(batch, generator) for each in draw)
        start = time.perf_counter()
        (loss,) = objective.losses_from(x0, network, x1, None, generator, batch)
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


def measure(network: ContinuousMlp, x0: Tensor, held_out: Tensor, optimal: float) -> dict[str, float]:
    """The three figures of a trained network, from noise x0 and as many held-out points."""
    states, energy = paths(network, x0)
    return {
        "w2": squared_wasserstein(states[-1], held_out) ** 0.5,
        "path_energy": abs(energy - optimal) / optimal,
        "steps": float(steps_needed(network, x0, states[-1])),
    }


def step_times(draw: tuple[Draw, Draw], batches: list[int]) -> dict[str, dict[str, float]]:
    """Median milliseconds of a training step, by objective and batch."""
    times: dict[str, dict[str, float]] = {kind: {} for kind in OBJECTIVES}
    for batch in batches:
        for kind in OBJECTIVES:
            _, seconds = train(objective_of(kind, 1.0), draw, 7 if batch > 1024 else 30, batch, 0)
            times[kind][str(batch)] = 1e3 * statistics.median(seconds[2:])
    return times


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3g} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.2g}"


def table(pairs: dict[str, Any]) -> str:
    lines = ["| pair | objective | W2 to held-out | path energy | Euler steps |", "|---|---|---|---|---|"]
    for pair, part in pairs.items():
        for name, runs in part["runs"].items():
            figures = [spread([run[figure] for run in runs]) for figure in FIGURES]
            lines.append(f"| {pair} | {name} | {' | '.join(figures)} |")
        lines.append(f"| {pair} | data against data | {part['data_against_data_w2']:.3g} | | |")
    return "\n".join(lines)


def time_table(times: dict[str, dict[str, float]]) -> str:
    batches = list(times["cfm"])
    lines = ["| ms a step at batch | " + " | ".join(batches) + " |", "|---" * (len(batches) + 1) + "|"]
    for kind, by_batch in times.items():
        lines.append(f"| {OBJECTIVES[kind]} | " + " | ".join(f"{value:.2f}" for value in by_batch.values()) + " |")
    return "\n".join(lines)


def plot_figures(runs: Runs, times: dict[str, dict[str, float]], out: Path) -> None:
    """The figures of a pair as bars with spread, and the time of a step over the batch."""
    figure, axes = pyplot.subplots(1, 4, figsize=(12, 3), layout="constrained")
    colours = [COLOURS[name.split(",")[0].lower()] for name in runs]
    for place, (name, title) in zip(axes, FIGURES.items(), strict=False):
        values = [[run[name] for run in each] for each in runs.values()]
        spreads = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
        means = [statistics.mean(each) for each in values]
        place.bar([label.replace(", ", "\n") for label in runs], means, yerr=spreads, color=colours, capsize=4)
        place.set_title(title, fontsize=10)
        place.tick_params(axis="x", labelsize=7)
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


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and measure every objective on every pair of distributions; draw tilt and paths."""
    report: dict[str, Any] = {"settings": {"steps": arguments.steps, "batch": arguments.batch}, "pairs": {}}
    for pair in arguments.pairs:
        source, target = pair.split(":")
        draw = (POINT_SETS[source], POINT_SETS[target])
        generator = torch.Generator().manual_seed(1_000_000)
        x0, held_out, other = (each(arguments.points, generator) for each in (*draw, draw[1]))
        optimal = squared_wasserstein(x0, held_out)
        curve = tilt_curve(draw[0](1024, generator), draw[1](1024, generator))
        plot_tilt(curve, arguments.out / f"tilt-{source}-{target}.png")
        objectives = {"CFM": ("cfm", 0.0), "OT-CFM": ("ot-cfm", 0.0)}
        objectives |= {f"W-CFM, kappa {kappa:.2g}": ("w-cfm", kappa) for kappa in (curve.kappa, *arguments.kappas)}
        runs: Runs = {name: [] for name in objectives}
        first: dict[str, ContinuousMlp] = {}
        for name, (kind, kappa) in objectives.items():
            for seed in range(arguments.seeds):
                network, _ = train(objective_of(kind, kappa), draw, arguments.steps, arguments.batch, seed)
                runs[name].append(measure(network, x0, held_out, optimal))
                first.setdefault(name, network)
            print(f"{pair} {name}: {runs[name]}", flush=True)
        plot_paths(first, x0[:250], held_out, arguments.out / f"paths-{source}-{target}.png")
        floor = squared_wasserstein(held_out, other) ** 0.5
        report["pairs"][pair] = {"elbow_kappa": curve.kappa, "data_against_data_w2": floor, "runs": runs}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/two-dimensional"))
    parser.add_argument("--part", choices=("quality", "times"), help="do one part; the report takes up the other one")
    parser.add_argument("--pairs", nargs="+", default=["eight_gaussians:moons", "normal:eight_gaussians"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--points", type=int, default=2048)
    parser.add_argument("--kappas", type=float, nargs="*", default=[0.5], help="kappas beside the elbow's")
    parser.add_argument("--times", type=int, nargs="+", default=[64, 256, 1024, 4096], help="batches to time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "report.json"
    report = json.loads(path.read_text()) if arguments.part and path.exists() else {}
    if arguments.part != "times":
        report |= compare(arguments)
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
