"""Measure a bundle: time, images per second, share of the memory bandwidth, error, memory.

One table compares the variants. An autoregressive flow is decoded token by token, and by its plan if it has one; a continuous
flow is integrated by its plan. "35 % of memory bandwidth" means that reading the weights and valid caches that a token (or a
pass) needs, at the bandwidth measured between the repetitions, would take 35 % of the time that it took. All rows take turns
in one process, and figures are medians. Errors are relative to the most precise variant.

Examples:
  starflow bench digits.bundle
  starflow bench digits.bundle --variant cpu-fp32 cpu-int8 --repetitions 20 --plot bench.png
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
    add_plan_arguments,
    add_variant_argument,
    backend_options,
    chosen_plan,
)
from starflow.runtime.commands.bundle_argument import add_bundle_argument
from starflow.runtime.plain.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starflow.runtime.diagnostics.benchmark import Benchmark
    from starflow.runtime.diagnostics.operator_profile import StepProfile
    from starflow.runtime.sampler import Sampler

GUIDANCE = 1.0  # its value changes neither bytes nor time


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_bundle_argument(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the comparison (.png, .svg or .pdf)")
    output.add_argument("--json", action="store_true", help="print all figures as JSON")
    running = parser.add_argument_group("how it runs")
    add_variant_argument(running, "variants to compare (default: all made for the CPU, or the first one)", several=True)
    running.add_argument(
        "--repetitions", type=int, default=5, metavar="N", help="number of timed repetitions (default: 5)"
    )
    add_backend_arguments(running)
    decoding = add_plan_arguments(parser)
    decoding.add_argument("--blocks", action="store_true", help="show every flow block as well")
    decoding.add_argument(
        "--explain", action="store_true", help="show which operators take the time (ONNX Runtime on the CPU only)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
    from starflow.runtime.bundle.own_files import refuse_own_files
    from starflow.runtime.diagnostics.benchmark import run_benchmark
    from starflow.runtime.diagnostics.benchmark_plot import write_benchmark_plot
    from starflow.runtime.plain.progress import progress_bar
    from starflow.runtime.reports.plot import check_plot

    if arguments.repetitions < 1:
        raise UsageError(f"--repetitions {arguments.repetitions}: give a number of at least 1")
    if arguments.plot:
        check_plot(arguments.plot)
    with ExitStack() as stack:
        samplers = _open(arguments, stack)
        for sampler in samplers:
            refuse_own_files(sampler.bundle, arguments.plot)
        if isinstance(samplers[0].manifest, ContinuousManifest):
            for name in ("blocks", "explain"):
                if getattr(arguments, name):
                    raise UsageError(f"--{name}: is for autoregressive flows; this bundle holds a continuous one")
        profile = _profiler(samplers[0]) if arguments.explain else None
        with progress_bar("measuring", enabled=not arguments.json) as bar:
            benchmark = run_benchmark(samplers, guidance=GUIDANCE, repetitions=arguments.repetitions, progress=bar)
        profiles = [profile(sampler, benchmark.bandwidth) for sampler in samplers] if profile else []
    if arguments.plot:
        write_benchmark_plot(benchmark, profiles, arguments.plot)
    if arguments.json:
        print(json.dumps(_plain(benchmark, profiles)))
    else:
        _print(benchmark, profiles, blocks=arguments.blocks)
    return 0


def _open(arguments: argparse.Namespace, stack: ExitStack) -> "list[Sampler]":
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.sampler import Sampler

    options = {"plan": chosen_plan(arguments), **backend_options(arguments)}
    bundle = Bundle.open(arguments.bundle).at_shape(options.pop("shape")).at_batch(options.pop("batch"))

    def opened(name: str | None) -> Sampler:
        return stack.enter_context(Sampler.open(bundle, variant=name, **options))

    samplers = [opened(name) for name in arguments.variant or [None]]
    first = samplers[0]
    if not arguments.variant and first.variant.lowering == "cpu":
        # On the CPU the question is which of its variants; elsewhere the default one is what runs.
        samplers += [opened(v.name) for v in first.manifest.variants if v.lowering == "cpu" and v != first.variant]
    return samplers


def _profiler(sampler: "Sampler") -> "Callable[[Sampler, float], StepProfile]":
    """Profiles the steps of a sampler, given the memory bandwidth in bytes a second; UsageError if its backend cannot."""
    # Imported here: who runs engines needs no ONNX Runtime.
    from starflow.runtime.diagnostics.operator_profile import profile_steps, profiling_backend

    profiling_backend(sampler)
    return lambda sampler, bandwidth: profile_steps(sampler, guidance=GUIDANCE, bandwidth=bandwidth)


def _plain(benchmark: "Benchmark", profiles: "Sequence[StepProfile]") -> dict[str, Any]:
    """All figures as plain values, those with them that follow from others."""
    figures = dataclasses.asdict(benchmark)
    for variant, timing in zip(figures["variants"], benchmark.variants, strict=True):
        total = timing.total
        variant |= {
            "image_milliseconds": timing.image_milliseconds,
            f"{benchmark.unit}_milliseconds": total.milliseconds,
            **{name: getattr(total, name) for name in ("floor_milliseconds", "passes", "spread")},
        }
        for row, block in zip(variant["rows"], timing.rows, strict=True):
            row["memory_bandwidth_percent"] = row["percent_of_floor"] = block.memory_bandwidth_percent
    for memory, found in zip(figures["memory"], benchmark.memory, strict=True):
        memory["predicted"]["total"] = found.predicted.total
    figures["profiles"] = [dataclasses.asdict(profile) for profile in profiles]
    return figures if benchmark.unit == "token" else figures | {"timings": figures["variants"]}  # its name before


def _print(benchmark: "Benchmark", profiles: "Sequence[StepProfile]", *, blocks: bool) -> None:
    from starflow.runtime.commands.bench_tables import print_blocks, print_comparison, print_memory, print_profile
    from starflow.runtime.plain.terminal import Terminal

    console = Terminal(soft_wrap=True)
    print_comparison(console, benchmark)
    print_memory(console, benchmark.memory)
    for timing in benchmark.variants if blocks else ():
        print_blocks(console, timing)
    for profile in profiles:
        print_profile(console, profile)
