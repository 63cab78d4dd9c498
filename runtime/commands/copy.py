"""Copy a bundle, whole or with some of its variants only.

A small bundle to ship, or a bundle of your own from one that must stay as it is: one that comes with starflow, or lies on the
Hugging Face Hub. Plans and engines of the variants come along.

Examples:
  starflow copy digits.bundle -o small.bundle --variant cpu-int8
  starflow copy org/name@v2 -o name.bundle
"""

import argparse
import json
from pathlib import Path

from starflow.runtime.commands.bundle_argument import add_bundle_argument, add_kept_variants


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_bundle_argument(parser)
    add_kept_variants(parser)
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="bundle folder to write")
    output.add_argument("--force", action="store_true", help="replace an existing bundle; any other folder is refused")
    output.add_argument("--json", action="store_true", help="print what was copied as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Copy; 0 if all of it was written."""
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.bundle.copying import copy_bundle
    from starflow.runtime.plain.progress import progress_bar
    from starflow.runtime.reports.tables import mebibytes

    bundle = Bundle.open(arguments.bundle)
    with progress_bar("copying", enabled=not arguments.json) as bar:
        copied = copy_bundle(bundle, arguments.out, arguments.variant, replace=arguments.force, report=bar)
    names = [variant.name for variant in copied.manifest.variants]
    if arguments.json:
        print(json.dumps({"bundle": str(arguments.out), "bytes": copied.bytes, "variants": names}))
    else:
        print(f"{arguments.out}: {', '.join(names)}; {mebibytes(copied.bytes)}")
    return 0
