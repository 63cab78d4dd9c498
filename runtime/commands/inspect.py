"""Show what is in a bundle: model, plans, variants, quantisation, engines; check that it is whole.

Examples:
  starflow inspect digits.bundle
  starflow inspect digits.bundle --hashes --json
"""

import argparse
import json
from typing import TYPE_CHECKING, Any

from starflow.runtime.commands.backend_arguments import add_variant_argument
from starflow.runtime.commands.batch_argument import add_batch_argument
from starflow.runtime.commands.bundle_argument import add_bundle_argument
from starflow.runtime.commands.shape_argument import add_shape_argument, parse_shape

if TYPE_CHECKING:
    from starflow.runtime.plain.terminal import Terminal


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_bundle_argument(parser)
    add_variant_argument(parser, "show only this variant (default: all)")
    add_shape_argument(parser)
    add_batch_argument(parser)
    parser.add_argument("--hashes", action="store_true", help="also compare every file with its digest")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print; 0 if the bundle is whole."""
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.diagnostics.bundle_summary import summarise

    bundle = Bundle.open(arguments.bundle)
    if arguments.hashes:
        bundle.fetch(bundle.files())
        bundle.verify_hashes()
    if arguments.shape:
        bundle = bundle.at_shape(parse_shape(arguments.shape))
    if arguments.batch is not None:
        bundle = bundle.at_batch(arguments.batch)
    variants = bundle.manifest.variants
    if arguments.variant:
        variants = (bundle.variant(arguments.variant, "cpu"),)
    summary = summarise(bundle, variants)
    if arguments.json:
        print(json.dumps(summary))
    else:
        _print(summary, hashes=arguments.hashes)
    return 0


def _print(summary: dict[str, Any], *, hashes: bool) -> None:
    from rich.text import Text

    from starflow.runtime.diagnostics.bundle_summary import SENTENCES
    from starflow.runtime.plain.terminal import Terminal
    from starflow.runtime.reports.tables import mebibytes

    console = Terminal(soft_wrap=True)
    for key in SENTENCES:
        if key in summary:
            lines = str(summary[key]).replace("\n", "\n" + " " * 11)
            console.print(Text.assemble((f"{key:<11}", "bold"), lines))
    console.print(Text.assemble((f"{'bytes':<11}", "bold"), f"{summary['bytes']:,}"))
    for variant in summary["variants"]:
        console.print()
        _print_variant(console, variant)
    _print_plans(console, summary["plans"])
    for build in summary["engines"]:
        tokens = ", ".join(map(str, build["profile_tokens"]))
        runs = f"runs of up to {tokens} tokens, " if tokens != "1" else ""
        console.print(
            Text.assemble(
                ("engines    ", "bold"),
                f"{build['target']}, {build['variant']}: {mebibytes(build['bytes'])}, ",
                f"{runs}TensorRT {build['version']}, {build['created']}",
            )
        )
    for build in summary["network_engines"]:
        networks = [
            f"{each['graph'].rpartition('/')[2].partition('.')[0]} {each['precision']}" for each in build["networks"]
        ]
        console.print(
            Text.assemble(
                ("networks   ", "bold"),
                f"{build['target']}: {mebibytes(build['bytes'])}, {', '.join(networks)}, ",
                f"TensorRT {build['version']}, {build['created']}",
            )
        )
    if hashes:
        console.print("every file has the digest that the manifest states")


def _print_variant(console: "Terminal", variant: dict[str, Any]) -> None:
    from starflow.runtime.reports.tables import mebibytes, plain_table

    title = f"{variant['name']}: weights {mebibytes(variant['weight_file_bytes'])}, takes {mebibytes(variant['memory_bytes'])}"
    if variant["largest_activation"]:
        title += f", largest activation {variant['largest_activation']:g}"
    if variant["blocks"]:
        columns = ("block", "order", "patch", "layers", "rows", "capacity", "prefix", "weights/step", "caches")
        table = plain_table(*columns, title=title, dense=True)
        for block in variant["blocks"]:
            table.add_row(
                str(block["block"]) + (" deep" if block["deep"] else ""),
                "reversed" if block["reversed"] else "raster",
                "x".join(map(str, block["patch"])),
                "identity" if block["identity"] else str(block["layers"]),
                *(str(block[name]) for name in ("rows", "capacity", "prefix")),
                *(mebibytes(block[name]) for name in ("weight_bytes", "cache_bytes")),
            )
        console.print(table)
    else:
        console.print(title, style="bold")
        console.print(f"{variant['rows']} rows, a pass reads {mebibytes(variant['weight_bytes'])} of weights")
    if quantization := variant["quantization"]:
        became = ", ".join(f"{count} {treatment}" for treatment, count in sorted(quantization["matrices"].items()))
        error, budget = quantization["error"], quantization["budget"]
        measured = "error not measured"
        if error is not None:
            allowed = "" if budget is None else f" (budget {budget:g})"
            measured = f"error {error:.1e}{allowed} on {quantization['images']} images"
        console.print(f"quantised from {quantization['source']}: matrices {became}; {measured}")
        if timing := quantization["timing"]:
            console.print(times_in_words(timing, quantization["source"]))
    for student in variant["students"]:
        console.print(
            f"student of flow block {student['block']} at batch {student['batch']}: 8 bits, {mebibytes(student['bytes'])}; "
            f"error of its tokens {student['error']:.1e}, {student['time']:.2f} of the time in float32"
        )


def times_in_words(timing: dict[str, Any], source: str) -> str:
    """The times that a calibration recorded, and whether they are of this processor."""
    from starflow.runtime.plain.processor import processor

    each = ", ".join(f"{one['step']:.2f} and {one['chunk']:.2f} at batch {one['batch']}" for one in timing["batches"])
    here = "this processor"
    if timing["processor"] != processor():
        here = f"{timing['processor']}; this is {processor()}, so --variant auto does not go by them"
    return f"time over {source}'s, of steps and of chunks: {each}; on {here}"


def _print_plans(console: "Terminal", plans: list[dict[str, Any]]) -> None:
    from rich.text import Text

    from starflow.runtime.reports.tables import plain_table

    if not plans:
        console.print(Text.assemble(("plans      ", "bold"), "none; `starflow calibrate --plan` makes one"))
        return
    columns = ("variant", "backend", "plan", "passes", "ms/batch", "without", "error", "budget")
    table = plain_table(*columns, text=("backend", "plan"), title="plans", dense=True)
    for plan in plans:
        table.add_row(
            *(plan[name] for name in ("variant", "backend", "plan")),
            f"{plan['passes']:.1f}",
            *(f"{plan[name]:.1f}" for name in ("milliseconds", "without_plan_milliseconds")),
            *(f"{plan[name]:.1e}" for name in ("error", "budget")),
        )
    console.print(table)
