"""Build TensorRT engines from a bundle's portable graphs.

A target is a TensorRT and the GPUs to build for. `tensorrt-rtx` builds for RTX cards, by their compute capabilities, on any
machine with or without a GPU; `tensorrt` builds for the GPU of this machine. Engines are written into the bundle, under
engines/. Engines that have not changed since the last build are not built again.

The networks beside the flow (text encoder, autoencoder, denoisers) get engines too. The build measures on the bundle's own data
what they can compute in float16, and says so.

Examples:
  starflow build digits.bundle --target tensorrt-rtx:8.9,12.0
  starflow build t2i.bundle --target tensorrt --variant portable-fp16 --profile-tokens 1,32,256 --workspace 2GiB
"""

import argparse
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from starflow.runtime.bundle.named_network import NETWORK_NAMES
from starflow.runtime.commands.backend_arguments import add_variant_argument
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.whole_number import whole_number

if TYPE_CHECKING:
    from rich.table import Table

    from starflow.export.tensorrt.build import BuiltEngine
    from starflow.export.tensorrt.network_build import BuiltNetwork
    from starflow.export.tensorrt.target import Target
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.bundle.manifest import Place

UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="folder written by `starflow export`")
    what = parser.add_argument_group("what to build")
    what.add_argument(
        "--target",
        required=True,
        help="tensorrt-rtx:CC,CC... for GPUs of these compute capabilities (8.9: RTX 40, 12.0: RTX 50), or tensorrt for this "
        "machine's GPU",
    )
    add_variant_argument(what, "variants to build (default: every portable 16-bit variant)", several=True)
    what.add_argument(
        "--shape",
        metavar="HxW",
        help="build for this height and width of the data only (default: for all that the bundle holds)",
    )
    what.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="build for batches of this many images only (default: for all that the bundle holds)",
    )
    what.add_argument(
        "--networks",
        nargs="+",
        metavar="NAME",
        choices=[*NETWORK_NAMES, "none"],
        help=f"networks beside the flow to build: {', '.join(NETWORK_NAMES)}, or none (default: all that the bundle holds)",
    )
    what.add_argument("--force", action="store_true", help="build again even what has not changed")
    tuning = parser.add_argument_group("tuning")
    tuning.add_argument(
        "--profile-tokens",
        metavar="S,S,...",
        default="1,16,128",
        help="numbers of tokens in one run to tune for (default: %(default)s); 1 is always included, larger numbers are cut to the "
        "bundle's own limit, and a prefill longer than the largest takes several runs",
    )
    tuning.add_argument(
        "--workspace",
        metavar="SIZE",
        help="limit on an engine's scratch memory on the GPU, such as 2GiB (default: no limit)",
    )
    tuning.add_argument(
        "--optimization-level",
        type=int,
        choices=range(6),
        metavar="0-5",
        help="effort TensorRT spends on finding fast kernels (default: 3); TensorRT RTX chooses kernels on the GPU later",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--kernels",
        action="store_true",
        help="list how many kernels and copies a run launches in each optimisation profile; builds unchanged engines again",
    )
    output.add_argument("--json", action="store_true", help="print what was built as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 if all engines are in the bundle."""
    from starflow.export.tensorrt.build import BuildRequest, build_bundle
    from starflow.export.tensorrt.network_build import build_networks, wanted_networks
    from starflow.export.tensorrt.target import parse_target
    from starflow.runtime.bundle.build_record import BuildOptions
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.commands.shape_argument import parse_shape
    from starflow.runtime.plain.progress import progress_bar

    options = BuildOptions(workspace_bytes=_bytes(arguments.workspace), optimization_level=arguments.optimization_level)
    request = BuildRequest(
        arguments.variant, options, _tokens(arguments.profile_tokens), arguments.force, arguments.kernels
    )
    bundle = Bundle.open(arguments.bundle)
    bundle.check_own()
    places = _places(bundle, parse_shape(arguments.shape), arguments.batch, arguments.variant)
    target = parse_target(arguments.target)

    def waiting() -> None:
        print("waiting for another build of this bundle to end", file=sys.stderr)

    names = arguments.networks
    if names and "none" in names and len(names) > 1:
        raise UsageError(f"--networks {' '.join(names)}: give none by itself, or names of networks")
    wanted = [] if names == ["none"] else wanted_networks(bundle, places, request, names)
    with progress_bar("building", enabled=not arguments.json) as bar:
        built = [
            engine for each in places for engine in build_bundle(each, target, request, report=bar, waiting=waiting)
        ]
    with progress_bar("building networks beside the flow", enabled=not arguments.json) as bar:
        networks = build_networks(bundle, wanted, target, request, report=bar, waiting=waiting)
    if arguments.json:
        answer = {"bundle": str(bundle.root), "target": target.name, "engines": [_plain(engine) for engine in built]}
        print(json.dumps(answer | {"networks": [_plain_network(each) for each in networks]}))
    else:
        _print(built, target)
        if networks:
            _print_networks(networks)
    return 0


def _places(
    bundle: "Bundle", shape: tuple[int, int] | None, batch: int | None, variants: list[str] | None
) -> "list[Bundle]":
    """The bundle at the shape and batch size to build for; by default at every one, of shapes that have the variants."""
    others = [] if shape else [bundle.at_shape(size) for size in bundle.manifest.sizes[1:]]
    named = set(variants or ())
    fitting = (other for other in others if named <= {variant.name for variant in other.manifest.variants})
    return [
        each.at_batch(size)
        for each in (bundle.at_shape(shape), *fitting)
        for size in ([batch] if batch is not None else each.manifest.batch_sizes)
    ]


def _plain(engine: "BuiltEngine") -> dict[str, object]:
    return {
        "shape": engine.place.shape,
        "batch": engine.place.batch,
        "variant": engine.variant,
        "block": engine.spec.block,
        "path": engine.spec.file.path,
        "bytes": engine.spec.file.bytes,
        "weight_bytes": engine.weight_bytes,
        "unchanged": engine.seconds is None,
        "seconds": engine.seconds,
        "kernels": [asdict(count) for count in engine.kernels],
    }


def _plain_network(built: "BuiltNetwork") -> dict[str, object]:
    return {
        "network": built.network.name,
        "graph": built.spec.graph,
        "precision": built.spec.precision,
        "error": built.spec.error,
        "path": built.spec.file.path,
        "bytes": built.spec.file.bytes,
        "weight_bytes": built.network.spec.weight_bytes,
        "unchanged": built.seconds is None,
        "seconds": built.seconds,
        "kernels": [asdict(count) for count in built.kernels],
    }


def _print_networks(built: "list[BuiltNetwork]") -> None:
    from starflow.runtime.plain.terminal import Terminal
    from starflow.runtime.reports.tables import plain_table

    columns = ("network", "precision", "error", "kernels", "engine MiB", "weights MiB", "seconds")
    listed = any(each.kernels for each in built)
    shown = (name for name in columns if listed or name != "kernels")
    table = plain_table(*shown, dense=True, title="networks beside the flow")
    for each in built:
        kernels = [str(each.kernels[0].kernels) if each.kernels else "-"] if listed else []
        table.add_row(
            " ".join((each.network.words, *_words(each.place))),
            each.spec.precision,
            "-" if each.spec.precision == "fp32" else f"{each.spec.error:.1e}",
            *kernels,
            f"{each.spec.file.bytes / 2**20:.1f}",
            f"{each.network.spec.weight_bytes / 2**20:.1f}",
            "unchanged" if each.seconds is None else f"{each.seconds:.1f}",
        )
    Terminal().print(table)


def _print(built: "list[BuiltEngine]", target: "Target") -> None:
    from starflow.runtime.plain.terminal import Terminal
    from starflow.runtime.reports.tables import plain_table

    columns = ("variant", "flow block", "engine MiB", "weights MiB", "seconds")
    table = plain_table(*columns, title=f"{target.name}, {target.flavour.name} {target.flavour.version}")
    for engine in built:
        table.add_row(
            " ".join((engine.variant, *_words(engine.place))),
            str(engine.spec.block),
            f"{engine.spec.file.bytes / 2**20:.1f}",
            f"{engine.weight_bytes / 2**20:.1f}",
            "unchanged" if engine.seconds is None else f"{engine.seconds:.1f}",
        )
    Terminal().print(table)
    if any(engine.kernels for engine in built):
        Terminal().print(_kernel_table(built))


def _kernel_table(built: "list[BuiltEngine]") -> "Table":
    from starflow.runtime.reports.tables import plain_table

    counted = ("kernels", "a layer", "moves", "reformats", "uploads", "streams")
    table = plain_table("variant", "block", "profile", *counted, dense=True, title="kernels and copies of one run")
    for engine in built:
        for profile, count in enumerate(engine.kernels):
            figures = (
                count.kernels, count.per_layer, count.moves, count.reformats, count.uploads, count.streams
            )  # fmt: skip
            words = ("-" if figure is None else str(figure) for figure in figures)
            table.add_row(
                " ".join((engine.variant, *_words(engine.place))), str(engine.spec.block), str(profile), *words
            )
    return table


def _words(place: "Place") -> list[str]:
    shape = ["x".join(map(str, place.shape))] if place.shape else []
    return [*shape, *([f"batch {place.batch}"] if place.batch else [])]


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,15})(KiB|MiB|GiB|)", text)
    if not match or int(match[1]) < 1:
        raise UsageError(f"--workspace {text}: give a size such as 512MiB or 2GiB")
    return int(match[1]) * UNITS[match[2]]


def _tokens(text: str) -> tuple[int, ...]:
    numbers = [whole_number(number) for number in text.split(",")]
    if any(number is None for number in numbers):
        raise UsageError(f"--profile-tokens {text}: give numbers of tokens, such as 1,16,128")
    return tuple(number for number in numbers if number is not None)
