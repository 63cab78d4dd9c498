"""The options that say what is sampled, of one call or of a whole set."""

import argparse
from pathlib import Path
from typing import Any

from starflow.runtime.commands.condition_arguments import add_condition_arguments, given_condition
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.guidance import WHOLE_WAY, Guidance


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare conditions, --count, --guidance, --guidance-interval, --temperature, --denoise, --denoising-rate and --seed."""
    what = parser.add_argument_group("what to sample")
    add_condition_arguments(what)
    what.add_argument("--null-condition", type=Path, metavar="FILE.npy", help="null condition tokens [tokens, width]")
    what.add_argument(
        "--count", type=int, metavar="N", help="number of images (default: one for each label, caption or condition)"
    )
    what.add_argument(
        "--guidance",
        type=float,
        metavar="W",
        default=0.0,
        help="classifier-free guidance weight >= 0 (default: 0, none)",
    )
    what.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("A", "B"),
        help="guide a continuous flow only in steps that start at a time t, A <= t < B; 0 is noise, 1 is data (default: 0 1)",
    )
    what.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        default=1.0,
        help="standard deviation of the noise; below 1, images are more alike (default: 1)",
    )
    what.add_argument(
        "--denoise",
        metavar="{auto,none,score,learned,decoder}",
        default="auto",
        help="how to remove the noise that was on the training data, of the ways that the bundle holds (default: auto, its "
        "decoder for noisy latents if there is one, else none)",
    )
    what.add_argument(
        "--denoising-rate",
        type=float,
        metavar="R",
        default=1.0,
        help="how far `score` and `learned` go, from 0 (not at all) to 1 (the default)",
    )
    what.add_argument(
        "--seed", type=int, default=0, help="random seed; image i depends on it and on i only (default: 0)"
    )


def given_guidance(arguments: argparse.Namespace) -> Guidance:
    """The guidance of every image.

    Raises:
        UsageError: a number is out of its range, or an interval is given without a weight.
    """
    if arguments.guidance_interval and not arguments.guidance:
        raise UsageError("--guidance-interval: there is no guidance; give a weight with --guidance")
    return Guidance(arguments.guidance, interval=tuple(arguments.guidance_interval or WHOLE_WAY))


def given_images(arguments: argparse.Namespace) -> tuple[Any, int, int]:
    """The condition, for how many images it is (0: none given), and the number of images.

    Raises:
        UsageError: there are more conditions than images, or a file cannot be read.
    """
    condition, given = given_condition(arguments)
    count = (given or 1) if arguments.count is None else arguments.count
    if count < max(given, 1):
        conditions = f"; there are conditions for {given} images" if given > 1 else ""
        raise UsageError(f"--count {count}: give a number of at least {max(given, 1)}{conditions}")
    return condition, given, count
