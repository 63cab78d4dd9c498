"""Measure a bundle: time per token, images per second, bytes per token, per cent of the memory floor.

The floor is the time it takes to read a step's weights and valid caches once, at the bandwidth measured between the
repetitions. Variants are interleaved in one process; figures are medians. A decode plan is measured beside sequential
decoding, with the time its calibration predicts, its network passes and its error.

Examples:
  starflow bench digits.bundle
  starflow bench digits.bundle --variants cpu-fp32 portable-fp32 --repetitions 20 --json
"""

import argparse
import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from starflow.runtime.commands.backend_arguments import add_backend_arguments, add_plan_argument, backend_options
from starflow.runtime.errors import UsageError

if TYPE_CHECKING:
    from starflow.runtime.benchmark import Benchmark


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="folder written by `starflow export`")
    parser.add_argument(
        "--variants", nargs="+", metavar="NAME", help="variants to compare (default: those made for the backend)"
    )
    parser.add_argument("--repetitions", type=int, default=5, help="batches each decodes (default: 5)")
    add_backend_arguments(parser)
    add_plan_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    from starflow.runtime.benchmark import run_benchmark
    from starflow.runtime.progress import progress_bar
    from starflow.runtime.sampler import Sampler

    if arguments.repetitions < 1:
        raise UsageError(f"--repetitions {arguments.repetitions}: give a number of at least 1")
    options = {"plan": arguments.plan, **backend_options(arguments)}
    with ExitStack() as stack:
        samplers = [
            stack.enter_context(Sampler.open(arguments.bundle, variant=name, **options))
            for name in arguments.variants or [None]
        ]
        if not arguments.variants:
            # On the CPU the question is which of its variants; elsewhere the default one is what runs.
            first = samplers[0]
            others = [v.name for v in first.manifest.variants if v.lowering == "cpu" and v != first.variant]
            if first.variant.lowering == "cpu":
                samplers += [
                    stack.enter_context(Sampler.open(arguments.bundle, variant=name, **options)) for name in others
                ]
        with progress_bar("measuring", enabled=not arguments.json) as bar:
            benchmark = run_benchmark(samplers, guidance=1.0, repetitions=arguments.repetitions, progress=bar)
    if arguments.json:
        figures = dataclasses.asdict(benchmark)
        for variant, timing in zip(figures["variants"], benchmark.variants, strict=True):
            for row, block in zip(variant["rows"], timing.rows, strict=True):
                row["percent_of_floor"] = block.percent_of_floor
        print(json.dumps(figures))
    else:
        _print(benchmark)
    return 0


def _print(benchmark: "Benchmark") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from starflow.runtime.commands.inspect import mebibytes

    console = Console()
    console.print(
        f"memory bandwidth {benchmark.bandwidth / 1e9:.1f} GB/s, measured between {benchmark.repetitions} repetitions",
        highlight=False,
    )
    for variant in benchmark.variants:
        passes = variant.total.passes
        title = (
            f"{variant.variant}, {variant.decoding}: {variant.images_per_second:.2f} images/s, batch {variant.batch}, "
            f"{passes:.0f} network passes"
        )
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
        for column in ("flow block", "ms/token", "spread", "bytes/token", "floor ms", "% of floor"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in variant.rows:
            table.add_row(
                "all" if row.block is None else str(row.block),
                f"{row.milliseconds:.3f}",
                f"{100 * row.spread:.0f} %",
                mebibytes(row.bytes),
                f"{row.floor_milliseconds:.3f}",
                f"{row.percent_of_floor:.0f}",
                end_section=row.block == variant.rows[-2].block if len(variant.rows) > 1 else False,
            )
        console.print(table)
        if variant.error is not None:
            predicted = variant.predicted_milliseconds
            said = f"{predicted:.1f} ms" if predicted is not None else "nothing (this plan was not calibrated here)"
            console.print(
                f"predicted {said}, measured {variant.batch_milliseconds:.1f} ms; error against sequential {variant.error:.1e}",
                highlight=False,
            )
    if any(variant.total.percent_of_floor > 100 for variant in benchmark.variants):
        console.print("More than 100 %: the weights stay in a processor cache, and memory is not the floor here.")
