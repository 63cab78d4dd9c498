"""The height and width of data as commands take them."""

import argparse

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.whole_number import whole_number


def add_shape_argument(parser: argparse._ActionsContainer) -> None:
    """Declare --shape."""
    parser.add_argument(
        "--shape",
        metavar="HxW",
        help="height and width of the data, of a bundle that was exported for several; latents count as data "
        "(default: the first one of the export)",
    )


def parse_shape(text: str | None) -> tuple[int, int] | None:
    """`12x20` -> (12, 20).

    Raises:
        UsageError: it is something else.
    """
    if text is None:
        return None
    height, width = (whole_number(side) for side in text.lower().partition("x")[::2])
    if height is None or width is None:
        raise UsageError(f"--shape {text}: give height and width, such as 32x32")
    return height, width
