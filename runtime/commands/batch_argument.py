"""The batch size as commands take it."""

import argparse


def add_batch_argument(parser: argparse._ActionsContainer, default: str = "the largest") -> None:
    """Declare --batch."""
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help=f"number of images run together, of a bundle that was exported for several (default: {default})",
    )
