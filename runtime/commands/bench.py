"""Measure a bundle: time, images per second, bytes, per cent of the memory floor, error, memory.

One table compares the variants, each decoded token by token and by its plan, if it has one. The floor is the time it takes
to read a step's weights and valid caches once, at the bandwidth measured between the repetitions. All take turns in one
process; figures are medians. Errors are those of one batch, relative to the most precise variant decoded token by token.

Examples:
  starflow bench digits.bundle
  starflow bench digits.bundle --variants cpu-fp32 cpu-int8 --repetitions 20 --plot bench.png
  starflow bench digits.bundle --explain --blocks
  starflow bench continuous.bundle --solver midpoint --steps 8
"""

import argparse
import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow.runtime.commands.backend_arguments import (
    add_backend_arguments,
    add_integration_arguments,
    add_plan_argument,
    backend_options,
    chosen_plan,
)
from starflow.runtime.plain.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starflow.runtime.diagnostics.benchmark import Benchmark
    from starflow.runtime.diagnostics.operator_profile import StepProfile
    from starflow.runtime.sampler import Sampler

GUIDANCE = 1.0  # its value changes neither bytes nor time


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="folder written by `starflow export`")
    parser.add_argument(
        "--variants", nargs="+", metavar="NAME", help="variants to compare (default: those made for the backend)"
    )
    parser.add_argument("--repetitions", type=int, default=5, help="batches each decodes (default: 5)")
    parser.add_argument("--blocks", action="store_true", help="show every flow block as well")
    parser.add_argument(
        "--explain", action="store_true", help="show which operators the time goes to (ONNX Runtime on the CPU)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the comparison")
    add_backend_arguments(parser)
    add_plan_argument(parser)
    add_integration_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
    from starflow.runtime.commands.bench_continuous import run_continuous
    from starflow.runtime.diagnostics.benchmark import run_benchmark
    from starflow.runtime.diagnostics.operator_profile import profile_steps, profiling_backend
    from starflow.runtime.plain.progress import progress_bar

    if arguments.repetitions < 1:
        raise UsageError(f"--repetitions {arguments.repetitions}: give a number of at least 1")
    if arguments.plot:
        from starflow.runtime.diagnostics.benchmark_plot import check_plot, write_plot

        check_plot(arguments.plot)
    with ExitStack() as stack:
        samplers = _open(arguments, stack)
        if isinstance(samplers[0].manifest, ContinuousManifest):
            return run_continuous(arguments, samplers)
        if arguments.explain:
            profiling_backend(samplers[0])
        with progress_bar("measuring", enabled=not arguments.json) as bar:
            benchmark = run_benchmark(samplers, guidance=GUIDANCE, repetitions=arguments.repetitions, progress=bar)
        profiles = [
            profile_steps(sampler, guidance=GUIDANCE, bandwidth=benchmark.bandwidth)
            for sampler in (samplers if arguments.explain else ())
        ]
    if arguments.plot:
        write_plot(benchmark, profiles, arguments.plot)
    if arguments.json:
        print(json.dumps(_plain(benchmark, profiles)))
    else:
        _print(benchmark, profiles, blocks=arguments.blocks)
    return 0


def _open(arguments: argparse.Namespace, stack: ExitStack) -> "list[Sampler]":
    from starflow.runtime.sampler import Sampler

    options = {"plan": chosen_plan(arguments), **backend_options(arguments)}

    def opened(name: str | None) -> Sampler:
        return stack.enter_context(Sampler.open(arguments.bundle, variant=name, **options))

    samplers = [opened(name) for name in arguments.variants or [None]]
    first = samplers[0]
    if not arguments.variants and first.variant.lowering == "cpu":
        # On the CPU the question is which of its variants; elsewhere the default one is what runs.
        samplers += [opened(v.name) for v in first.manifest.variants if v.lowering == "cpu" and v != first.variant]
    return samplers


def _plain(benchmark: "Benchmark", profiles: "Sequence[StepProfile]") -> dict[str, Any]:
    """All figures as plain values, those with them that follow from others."""
    figures = dataclasses.asdict(benchmark)
    for variant, timing in zip(figures["variants"], benchmark.variants, strict=True):
        variant["image_milliseconds"] = timing.image_milliseconds
        for row, block in zip(variant["rows"], timing.rows, strict=True):
            row["percent_of_floor"] = block.percent_of_floor
    for memory, found in zip(figures["memory"], benchmark.memory, strict=True):
        memory["predicted"]["total"] = found.predicted.total
    return figures | {"profiles": [dataclasses.asdict(profile) for profile in profiles]}


def _print(benchmark: "Benchmark", profiles: "Sequence[StepProfile]", *, blocks: bool) -> None:
    from rich.console import Console

    from starflow.runtime.commands.bench_tables import print_blocks, print_comparison, print_memory, print_profile

    console = Console()
    print_comparison(console, benchmark)
    print_memory(console, benchmark.memory)
    for timing in benchmark.variants if blocks else ():
        print_blocks(console, timing)
    for profile in profiles:
        print_profile(console, profile)
