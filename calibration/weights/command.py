"""The weights part of `starflow calibrate`: its arguments, and what they start."""

import argparse
import dataclasses
import json
import math
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow.runtime.backends.fastest_variant import PAYS
from starflow.runtime.plain.errors import UsageError

if TYPE_CHECKING:
    from starflow.calibration.weights.results import StudentResult, WeightCalibration
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.bundle.manifest import Timing
    from starflow.runtime.diagnostics.benchmark import Benchmark

# What plain rounding has no use for.
OF_SAMPLES = ("budget", "images", "guidance", "seed", "data", "report", "condition", "null_condition", "captions_file")


def configure_weights(parser: argparse._ActionsContainer) -> None:
    """Declare the arguments of quantised weights."""
    parser.add_argument(
        "--lowering",
        nargs="+",
        choices=("cpu", "portable", "cuda"),
        help="lowerings to add variants of (default: all whose source the bundle holds)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="calibrate on this data (x [N, C, H, W] as the model was trained on, and condition), not on samples of the model",
    )
    parser.add_argument(
        "--product",
        choices=("block", "row"),
        help="what shares a scale among activations of 8 bits on the CPU: a row and block of inputs, or a row (default: for each "
        "matrix what is faster on this machine; with --plain block)",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="round every matrix to its nearest codes, without samples and without a budget: for models that are too large "
        "to be sampled dozens of times",
    )


def run_plain(arguments: argparse.Namespace) -> int:
    """Round weights without samples."""
    from starflow.calibration.weights.plain_rounding import round_plainly
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.plain.progress import progress_bar

    given = next((name for name in OF_SAMPLES if getattr(arguments, name) is not None), None)
    if arguments.plan or given:
        raise UsageError(f"--plain rounds weights without samples; leave out --{(given or 'plan').replace('_', '-')}")
    bundle = Bundle.open(arguments.bundle)
    bundle.check_own()
    with progress_bar("rounding", enabled=not arguments.json) as bar:
        found = round_plainly(bundle, arguments.weights, arguments.lowering, bar, arguments.product)
    rows: list[dict[str, Any]] = [
        {"variant": each.name, "bytes": sum(graph.weight_bytes for graph in each.graphs)} for each in found
    ]
    if arguments.json:
        print(json.dumps(rows))
    else:
        for variant, count in (row.values() for row in rows):
            print(f"{variant}: rounded plainly, {count / 1e6:.2f} MB of weights; the error of samples was not measured")
    return 0


def run_weights(arguments: argparse.Namespace) -> int:
    """Calibrate weights."""
    from starflow.calibration.cases import draw_cases, read_conditions
    from starflow.calibration.inverted_data import invert_data, read_data
    from starflow.calibration.weights.calibration import calibrate_weights
    from starflow.calibration.weights.report import write_report
    from starflow.calibration.weights.results import WeightRequest
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.bundle.own_files import refuse_own_files
    from starflow.runtime.plain.atomic_write import check_output
    from starflow.runtime.plain.progress import progress_bar

    request = WeightRequest(
        weights=arguments.weights,
        budget=arguments.budget,
        lowerings=arguments.lowering,
        threads=arguments.threads,
        product=arguments.product,
    )
    if arguments.report:
        check_output(arguments.report)
    bundle = Bundle.open(arguments.bundle)
    bundle.check_own()
    refuse_own_files(bundle, arguments.report)
    check_output(bundle.folder / "manifest.json")
    given = read_conditions(bundle, arguments.condition, arguments.null_condition, arguments.captions_file)
    cases = draw_cases(bundle, arguments.images, arguments.seed, arguments.guidance, given)
    trace = invert_data(*read_data(arguments.data, bundle), arguments.threads) if arguments.data else None
    with progress_bar("calibrating", enabled=not arguments.json) as bar:
        found = calibrate_weights(bundle, request, cases, trace=trace, report=bar, waiting=_waiting)
    if arguments.report:
        bundle = Bundle.open(arguments.bundle)
        write_report(arguments.report, bundle, found, _time(bundle, found, arguments.threads))
    if arguments.json:
        print(json.dumps([as_plain_values(calibration) for calibration in found]))
    else:
        for calibration in found:
            _print(calibration)
    return 0


def _waiting() -> None:
    print("waiting for another build or calibration of this bundle to end", file=sys.stderr)


def _time(bundle: "Bundle", found: "list[WeightCalibration]", threads: int) -> "Benchmark | None":
    """Time the cpu variants token by token; how long an engine takes, only its GPU knows."""
    from starflow.calibration.weights.calibration import MEASURED
    from starflow.runtime.diagnostics.benchmark import run_benchmark
    from starflow.runtime.sampler import Sampler

    names = [each.variant.name for each in found if each.variant.lowering == "cpu"]
    if not names:
        return None
    with ExitStack() as stack:
        samplers = (
            Sampler.open(bundle.root, backend="onnxruntime", variant=name, plan="sequential", threads=threads)
            for name in (MEASURED, *names)
        )
        return run_benchmark([stack.enter_context(sampler) for sampler in samplers], guidance=1.0, repetitions=5)


def as_plain_values(calibration: "WeightCalibration") -> Any:
    """A calibration without its samples, for JSON; an error that is not finite is null."""
    values = {
        "variant": calibration.variant.model_dump(mode="json", include={"name", "lowering", "precision", "weights"}),
        "request": dataclasses.asdict(calibration.request),
        "images": calibration.images,
        "guidance": calibration.guidance,
        "measured": [dataclasses.asdict(each) for each in calibration.measured],
        "matrices": [dataclasses.asdict(each) for each in calibration.matrices],
        "students": [dataclasses.asdict(each) for each in calibration.students],
    }
    return _finite(values)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(calibration: "WeightCalibration") -> None:
    from starflow.calibration.weights.results import SOURCE
    from starflow.runtime.plain.terminal import Terminal
    from starflow.runtime.reports.tables import plain_table

    console = Terminal()
    source = calibration.measurement(SOURCE)
    title = f"{calibration.variant.name}: {calibration.images} images, guidance {calibration.guidance:g}"
    table = plain_table("weights", "MB", "of source", "error %", "median", "worst", title=title)
    for each in calibration.measured:
        errors = (each.error.total, each.error.median, each.error.worst)
        table.add_row(
            f"{each.what}, taken" if each is calibration.chosen else each.what,
            f"{each.bytes / 1e6:.2f}",
            f"{each.bytes / source.bytes:.0%}",
            *(f"{100 * error:.3g}" if math.isfinite(error) else "broke down" for error in errors),
        )
    console.print(table)
    counts = Counter(matrix.treatment for matrix in calibration.matrices)
    became = ", ".join(f"{count} {treatment}" for treatment, count in sorted(counts.items()))
    quantization = calibration.variant.quantization
    caches = quantization.caches if quantization else ()
    blocks = f"; 8-bit caches in flow blocks {', '.join(map(str, caches))}" if caches else ""
    console.print(f"{len(calibration.matrices)} matrices: {became}{blocks}")
    if quantization and quantization.timing:
        for line in times_in_words(calibration.variant.name, quantization.source, quantization.timing):
            console.print(line)
    for student in calibration.students:
        console.print(student_in_words(student), soft_wrap=True)


def student_in_words(student: "StudentResult") -> str:
    """What became of a student, for who runs it."""
    name = f"student of flow block {student.block}"
    if student.error is None:
        return f"{name}: stays in float32; no product of 8 bits is faster within the budget"
    counts = Counter(student.matrices.values())
    became = ", ".join(f"{count} {treatment}" for treatment, count in sorted(counts.items()))
    times = ", ".join(f"{time:.2f} at batch {batch}" for batch, time in student.times.items())
    kept = [str(batch) for batch, time in student.times.items() if time >= PAYS]
    stays = f"; stays in float32 at batch {' and '.join(kept)}, where 8 bits do not pay" if kept else ""
    return f"{name}: {became}; error of its tokens {100 * student.error:.3g} %; time over float32's {times}{stays}"


def times_in_words(name: str, source: str, timing: "Timing") -> list[str]:
    """What a variant's times mean for who runs it."""
    pays = [each.batch for each in timing.batches if max(each.step, each.chunk) < PAYS]
    verdict = f"--variant auto takes {name} on this processor"
    if not pays:
        verdict = f"{name} does not pay on this processor, and --variant auto stays with {source}"
    elif len(pays) < len(timing.batches):
        sizes = " or ".join(f"--batch {batch}" for batch in pays)
        verdict = f"--variant auto takes {name} on this processor with {sizes}, else {source}"
    return [
        *(
            f"batch {each.batch}: a step takes {each.step:.2f} of the time of {source}, a chunk {each.chunk:.2f}"
            for each in timing.batches
        ),
        verdict,
    ]
