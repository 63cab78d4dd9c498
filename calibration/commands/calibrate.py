"""Make a bundle faster within an error you allow: quantised weights, or a decode plan with fewer passes.

--weights adds variants whose weights are codes of 8 or 4 bits: cpu-int8 or cpu-int4 for ONNX Runtime, made from cpu-fp32,
and portable-int8, -int4 or -fp8 for engines, made from portable-fp16. Every matrix is rounded so that its outputs change
least on inputs seen while sampling, and gets the fewest bits with which whole samples stay within --budget: relative error
against exact weights and the same noise, measured by sampling. The variants that are there stay as they are, and stay
the default. Exit status: 0 done, 1 the budget cannot be kept, 2 wrong use.

Examples:
  starflow calibrate digits.bundle --weights int8
  starflow calibrate digits.bundle --weights int4 --budget 0.02 --report report.html
  starflow calibrate digits.bundle --weights fp8 --lowering portable --images 128 --json
  starflow calibrate digits.bundle --weights int8 --data train.npz
  starflow calibrate t2i.bundle --weights int8 --lowering cpu --captions-file captions.txt
  starflow calibrate t2i.bundle --weights int8 --lowering cpu --plain
  starflow calibrate digits.bundle --plan --budget 1e-3
  starflow calibrate digits.bundle --plan --variant cpu-int8
  starflow calibrate continuous.bundle --plan --budget 0.01 --plot plan.png
"""

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow.calibration.plans.command import configure_plan, run_plan
from starflow.runtime.plain.errors import UsageError

if TYPE_CHECKING:
    from starflow.calibration.weights.results import WeightCalibration, WeightRequest
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.diagnostics.benchmark import Benchmark


WEIGHT_DEFAULTS = {"budget": 0.005, "images": 64, "seed": 1}
PLAN_DEFAULTS = {"budget": 1e-3, "images": 8, "seed": 0}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="folder written by `starflow export`; it gets what is made")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--weights", choices=("int8", "int4", "fp8"), help="make variants with weights of this type")
    what.add_argument(
        "--plan",
        action="store_true",
        help="make a decode plan for a variant (continuous flows: solver, steps and grid)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="E",
        help="relative error of whole samples that is allowed (default: 0.005 for weights, 0.001 for a plan)",
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="samples to calibrate on, and as many others to check on (default: 64 for weights, 8 for a plan)",
    )
    parser.add_argument(
        "--guidance", type=float, metavar="W", help="guidance weight (default: 1 where the model takes it)"
    )
    parser.add_argument("--seed", type=int, help="seed of noise and conditions")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    weights = parser.add_argument_group("quantised weights")
    weights.add_argument(
        "--lowering",
        nargs="+",
        choices=("cpu", "portable"),
        help="what to make variants of (default: all whose source the bundle holds)",
    )
    weights.add_argument(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="calibrate on this data (x [N, C, H, W] as trained on, and condition) in place of samples drawn from the model",
    )
    weights.add_argument(
        "--plain",
        action="store_true",
        help="round every matrix to its nearest codes, without samples and without a budget: for models too large to be sampled "
        "dozens of times here",
    )
    weights.add_argument("--report", type=Path, metavar="FILE", help="write a report as one HTML file, speed included")
    plan = parser.add_argument_group("decode plans and what runs")
    plan.add_argument("--variant", metavar="NAME", help="variant to plan for (default: the first one for the backend)")
    configure_plan(plan)


def run(arguments: argparse.Namespace) -> int:
    """Calibrate and print."""
    if arguments.shape and not arguments.plan:
        raise UsageError("--shape: weights are those of every shape, and calibrated at the first one; leave it out")
    if arguments.plain:
        return _run_plain(arguments)
    for name, value in (PLAN_DEFAULTS if arguments.plan else WEIGHT_DEFAULTS).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return run_plan(arguments) if arguments.plan else _run_weights(arguments)


def _run_plain(arguments: argparse.Namespace) -> int:
    from starflow.calibration.weights.plain_rounding import round_plainly
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.plain.progress import progress_bar

    samples = ("budget", "images", "guidance", "seed", "data", "report", "condition", "null_condition", "captions_file")
    given = next((name for name in samples if getattr(arguments, name) is not None), None)
    if arguments.plan or given:
        raise UsageError(f"--plain rounds weights without samples; leave out --{(given or 'plan').replace('_', '-')}")
    bundle = Bundle.open(arguments.bundle)
    with progress_bar("rounding", enabled=not arguments.json) as bar:
        found = round_plainly(bundle, arguments.weights, arguments.lowering, bar)
    rows: list[dict[str, Any]] = [
        {"variant": variant.name, "bytes": sum(graph.weight_bytes for graph in variant.graphs)} for variant in found
    ]
    if arguments.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(
                f"{row['variant']}: rounded plainly, {row['bytes'] / 1e6:.2f} MB of weights; what it does to samples was not measured"
            )
    return 0


def _run_weights(arguments: argparse.Namespace) -> int:
    from starflow.calibration.cases import draw_cases, read_conditions
    from starflow.calibration.inverted_data import invert_data, read_data
    from starflow.calibration.weights.calibration import calibrate_weights
    from starflow.calibration.weights.results import WeightRequest
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.plain.atomic_write import check_file
    from starflow.runtime.plain.progress import progress_bar

    request = WeightRequest(
        weights=arguments.weights,
        budget=arguments.budget,
        lowerings=arguments.lowering,
        threads=arguments.threads,
    )
    if arguments.report:
        check_file(arguments.report)
    bundle = Bundle.open(arguments.bundle)
    given = read_conditions(bundle, arguments.condition, arguments.null_condition, arguments.captions_file)
    cases = draw_cases(bundle, arguments.images, arguments.seed, arguments.guidance, given)
    trace = invert_data(*read_data(arguments.data, bundle), arguments.threads) if arguments.data else None
    with progress_bar("calibrating", enabled=not arguments.json) as bar:
        found = calibrate_weights(bundle, request, cases, trace=trace, report=bar, waiting=_waiting)
    if arguments.report:
        _write_report(arguments.report, Bundle.open(arguments.bundle), found, request)
    if arguments.json:
        print(json.dumps([as_plain_values(calibration) for calibration in found]))
    else:
        for calibration in found:
            _print(calibration)
    return 0


def _waiting() -> None:
    print("waiting for another build or calibration of this bundle to end", file=sys.stderr)


def _write_report(path: Path, bundle: "Bundle", found: "list[WeightCalibration]", request: "WeightRequest") -> None:
    from starflow.calibration.weights.report import write_report

    names = [calibration.variant.name for calibration in found if calibration.variant.lowering == "cpu"]
    benchmark = _time(bundle, ["cpu-fp32", *names], request) if names else None
    write_report(path, bundle, found, benchmark)


def _time(bundle: "Bundle", variants: list[str], request: "WeightRequest") -> "Benchmark":
    """Time the cpu variants token by token; how long an engine takes, only its GPU knows."""
    from contextlib import ExitStack

    from starflow.runtime.diagnostics.benchmark import run_benchmark
    from starflow.runtime.sampler import Sampler

    with ExitStack() as stack:
        samplers = [
            stack.enter_context(
                Sampler.open(
                    bundle.root, backend="onnxruntime", variant=name, plan="sequential", threads=request.threads
                )
            )
            for name in variants
        ]
        return run_benchmark(samplers, guidance=1.0, repetitions=5)


def as_plain_values(calibration: "WeightCalibration") -> dict[str, object]:
    """A calibration without its samples, for JSON; an error that is not finite is null."""
    values = {
        "variant": calibration.variant.model_dump(mode="json", include={"name", "lowering", "precision", "weights"}),
        "request": dataclasses.asdict(calibration.request),
        "images": calibration.images,
        "guidance": calibration.guidance,
        "measured": [dataclasses.asdict(each) for each in calibration.measured],
        "matrices": [dataclasses.asdict(each) for each in calibration.matrices],
    }
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(calibration: "WeightCalibration") -> None:
    from collections import Counter

    from rich.console import Console

    from starflow.calibration.weights.results import SOURCE
    from starflow.runtime.reports.tables import plain_table

    console = Console()
    source, chosen = calibration.measurement(SOURCE), calibration.chosen
    table = plain_table(
        title=f"{calibration.variant.name}: {calibration.images} images, guidance {calibration.guidance:g}"
    )
    table.add_column("weights", no_wrap=True)
    for column in ("MB", "of source", "error %", "median", "worst"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in calibration.measured:
        errors = (each.error.total, each.error.median, each.error.worst)
        table.add_row(
            f"{each.what}, taken" if each is chosen else each.what,
            f"{each.bytes / 1e6:.2f}",
            f"{each.bytes / source.bytes:.0%}",
            *(f"{100 * error:.3g}" if math.isfinite(error) else "broke down" for error in errors),
        )
    console.print(table)
    counts = Counter(matrix.treatment for matrix in calibration.matrices)
    became = ", ".join(f"{count} {treatment}" for treatment, count in sorted(counts.items()))
    quantization = calibration.variant.quantization
    caches = quantization.caches if quantization else ()
    blocks = f"; caches of 8 bits in flow blocks {', '.join(map(str, caches))}" if caches else ""
    console.print(f"{len(calibration.matrices)} matrices: {became}{blocks}", highlight=False)
