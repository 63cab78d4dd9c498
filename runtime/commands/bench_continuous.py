"""`starflow bench` for continuous flows: a batch by its plan, a pass, and the floor under it."""

import argparse
import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console

from starflow.runtime.diagnostics.continuous_benchmark import IntegrationBenchmark, benchmark_integration
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.progress import progress_bar
from starflow.runtime.reports.tables import plain_table
from starflow.runtime.sampler import Sampler


def run_continuous(arguments: argparse.Namespace, samplers: Sequence[Sampler]) -> int:
    """Measure and print.

    Raises:
        UsageError: an option is for autoregressive flows.
    """
    for name in ("blocks", "explain", "plot"):
        if getattr(arguments, name):
            raise UsageError(f"--{name}: is for autoregressive flows")
    with progress_bar("measuring", enabled=not arguments.json) as bar:
        benchmark = benchmark_integration(samplers, repetitions=arguments.repetitions, progress=bar)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(benchmark)))
    else:
        _print(benchmark)
    return 0


def _print(benchmark: IntegrationBenchmark) -> None:
    console = Console(highlight=False)
    console.print(
        f"memory bandwidth {benchmark.bandwidth / 1e9:.1f} GB/s, measured between {benchmark.repetitions} repetitions; "
        f"batch {benchmark.timings[0].batch}",
        soft_wrap=True,
    )
    table = plain_table()
    table.add_column("variant", no_wrap=True)
    table.add_column("plan")
    for column in ("passes", "ms/\nbatch", "spread", "ms/\npass", "floor\nms", "images\n/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for timing in benchmark.timings:
        table.add_row(
            timing.variant,
            timing.plan,
            str(timing.passes),
            f"{timing.batch_milliseconds:.1f}",
            f"{100 * timing.spread:.0f} %",
            f"{timing.pass_milliseconds:.3f}",
            f"{timing.floor_milliseconds:.3f}",
            f"{timing.images_per_second:.1f}",
        )
    console.print(table)
    console.print(
        "floor: the weights read once; a pass of many tokens and rows computes longer than that", soft_wrap=True
    )
