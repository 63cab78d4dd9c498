"""The options that say which images are sampled or scored: labels, captions, condition tokens."""

import argparse
from pathlib import Path
from typing import Any

from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.input_files import load_array, load_captions
from starflow.runtime.plain.limits import MOST_LABELS
from starflow.runtime.plain.whole_number import whole_number


def add_condition_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare --labels, --captions, --captions-file and --condition, one of which may be given."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--labels",
        metavar="L,L,..",
        help="class labels, numbers or names, with ranges (0-9); a single one applies to all images",
    )
    what.add_argument(
        "--captions",
        nargs="+",
        metavar="TEXT",
        help="captions, for bundles with a text encoder; a single one applies to all images",
    )
    what.add_argument(
        "--captions-file",
        type=Path,
        metavar="FILE.txt",
        help="text file with one caption per line; empty lines do not count",
    )
    what.add_argument("--condition", type=Path, metavar="FILE.npy", help="condition tokens, float32 [N, tokens, width]")


def given_condition(arguments: argparse.Namespace) -> tuple[Any, int]:
    """The condition, and for how many images it is (0: none given)."""
    if arguments.labels is not None:
        labels = _labels(arguments.labels)
        return labels, len(labels)
    if arguments.captions is not None:
        return arguments.captions, len(arguments.captions)
    if arguments.captions_file is not None:
        captions = load_captions(arguments.captions_file)
        return captions, len(captions)
    if arguments.condition is not None:
        array = load_array(arguments.condition)
        if array.ndim not in (2, 3) or not len(array):
            raise UsageError(
                f"--condition {arguments.condition}: found shape {list(array.shape)}, expected [N, tokens, width]"
            )
        return array, 1 if array.ndim == 2 else len(array)
    return None, 0


def refuse_labels(arguments: argparse.Namespace, manifest: Manifest) -> None:
    """A caption such as "3" is a text as well, so a label would pass for one.

    Raises:
        UsageError: labels are given to a model that has no classes.
    """
    if arguments.labels is not None and manifest.conditioning.kind == "features":
        instead = "captions: --captions" if manifest.text else "condition tokens: --condition FILE.npy"
        raise UsageError(f"--labels: this model has no classes; give {instead}")


def _labels(text: str) -> list[str]:
    """`0-2,7,nine` -> ["0", "1", "2", "7", "nine"]."""
    labels: list[str] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        start, end = whole_number(first), whole_number(last)
        if dash and start is not None and end is not None:
            if start > end:
                raise UsageError(f"--labels {part.strip()}: the range runs backwards; give {last}-{first}")
            if end - start >= MOST_LABELS:
                raise UsageError(
                    f"--labels {part.strip()}: found {end - start + 1:,} labels, expected at most {MOST_LABELS:,}"
                )
            labels += map(str, range(start, end + 1))
        elif part.strip():
            labels.append(part.strip())
    if not labels:
        raise UsageError("--labels: name at least one label")
    return labels
