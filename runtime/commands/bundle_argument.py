"""The bundle as commands take it that read one."""

import argparse
from pathlib import Path

HELP = "folder written by `starflow export`, or `digits`, or org/name[@revision] on the Hugging Face Hub"


def add_bundle_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle, a name for `Bundle.open`."""
    parser.add_argument("bundle", type=Path, help=HELP)


def add_kept_variants(parser: argparse.ArgumentParser) -> None:
    """Declare --variant of commands that pass a bundle on."""
    parser.add_argument(
        "--variant",
        nargs="+",
        metavar="V",
        help="only these variants, with their plans and engines (default: all)",
    )
