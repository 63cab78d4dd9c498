"""Show what is in a bundle: model, blocks, shapes, bytes, caches, engines.

Example:
  starflow inspect digits.bundle
  starflow inspect digits.bundle --hashes --json
"""

import argparse
import json
from pathlib import Path
from typing import Any

from starflow.runtime.commands.shape_argument import add_shape_argument, parse_shape


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="folder written by `starflow export`")
    parser.add_argument("--variant", help="show the blocks of this variant only")
    add_shape_argument(parser)
    parser.add_argument("--hashes", action="store_true", help="compare every file with its digest as well")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print; 0 when the bundle is whole."""
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.diagnostics.bundle_summary import summarise

    bundle = Bundle.open(arguments.bundle)
    if arguments.hashes:
        bundle.verify_hashes()
    if arguments.shape:
        bundle = bundle.at_shape(parse_shape(arguments.shape))
    variants = bundle.manifest.variants
    if arguments.variant:
        variants = (bundle.variant(arguments.variant, "cpu"),)
    summary = summarise(bundle, variants)
    if arguments.json:
        print(json.dumps(summary))
        return 0
    _print(summary, hashes=arguments.hashes)
    return 0


def _print(summary: dict[str, Any], *, hashes: bool) -> None:
    from rich.console import Console

    from starflow.runtime.reports.tables import mebibytes, plain_table

    console = Console(soft_wrap=True)
    for key in (
        "bundle",
        "model",
        "data",
        "condition",
        "text",
        "decoder",
        "guidance",
        "denoisers",
        "shapes",
        "batch",
        "plans",
        "bytes",
        "checkpoint",
        "made",
    ):
        if key in summary:
            console.print(f"[bold]{key:<11}[/bold]{summary[key]}", highlight=False)
    for variant in summary["variants"]:
        console.print()
        title = f"{variant['name']}: weights {mebibytes(variant['weight_file_bytes'])}, takes {mebibytes(variant['memory_bytes'])}"
        if variant["largest_activation"]:
            title += f", largest activation {variant['largest_activation']:g}"
        if not variant["blocks"]:
            read = mebibytes(variant["weight_bytes"])
            console.print(f"[bold]{title}[/bold]", highlight=False)
            console.print(f"{variant['rows']} rows, a pass reads {read} of weights", highlight=False)
            continue
        table = plain_table(title=title, dense=True)
        for column in ("block", "order", "layers", "rows", "capacity", "prefix", "weights/step", "caches"):
            table.add_column(column, justify="right", no_wrap=True)
        for block in variant["blocks"]:
            table.add_row(
                str(block["block"]) + (" deep" if block["top"] else ""),
                "reversed" if block["reversed"] else "raster",
                "identity" if block["identity"] else str(block["layers"]),
                str(block["rows"]),
                str(block["capacity"]),
                str(block["prefix"]),
                mebibytes(block["weight_bytes"]),
                mebibytes(block["cache_bytes"]),
            )
        console.print(table)
    for build in summary["engines"]:
        tokens = ", ".join(map(str, build["profile_tokens"]))
        runs = f"runs of up to {tokens} tokens, " if tokens != "1" else ""
        console.print(
            f"[bold]engines[/bold]    {build['target']}, {build['variant']}: {mebibytes(build['bytes'])}, "
            f"{runs}TensorRT {build['version']}, {build['created']}",
            highlight=False,
        )
    if hashes:
        console.print("every file has the digest the manifest states")
