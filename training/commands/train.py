"""Train a flow, an autoencoder or its decoder from a recipe.

Reads a YAML recipe, trains, and writes a folder with checkpoint/ (the averaged weights; those of a flow are ready for
`starflow export`), state.pt, log.jsonl, samples/ and tensorboard/. To continue a run that was stopped or killed, give the
same command again.

Example: starflow train examples/digits/recipe.yaml --out out/digits/run --set training.steps=2000
"""

import argparse
import dataclasses
import json
import signal
import sys
from pathlib import Path
from types import FrameType

from starflow.runtime.plain.errors import RecipeError, UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", type=Path, help="YAML file; paths in it are relative to the working directory")
    parser.add_argument(
        "--out", type=Path, help="folder to write the run to (default: out/NAME, with the recipe's name)"
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue the run in the folder, if there is one (default: yes)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="change a field of the recipe; may be repeated",
    )
    parser.add_argument("--max-steps", type=int, metavar="N", help="stop and save after N steps of the run")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Train. Exit status 0 if the run is complete or reached --max-steps, 130 if it was interrupted."""
    from starflow.training.autoencoder.trainer import AutoencoderTrainer, DecoderTrainer
    from starflow.training.data.dataset import load_dataset
    from starflow.training.recipe import AutoencoderRecipe, DecoderRecipe, Recipe, load_recipe
    from starflow.training.runs.run import TrainingRun
    from starflow.training.trainer import Trainer

    if arguments.max_steps is not None and arguments.max_steps < 1:
        raise UsageError(f"--max-steps: found {arguments.max_steps}, expected a number of at least 1")
    recipe = load_recipe(arguments.recipe, arguments.set)
    folder = arguments.out or Path("out") / arguments.recipe.stem
    data = load_dataset(recipe.data, cache=folder)
    trainer: TrainingRun
    try:
        match recipe:
            case Recipe():
                trainer = Trainer(recipe, data, folder)
            case AutoencoderRecipe():
                trainer = AutoencoderTrainer(recipe, data, folder)
            case DecoderRecipe():
                trainer = DecoderTrainer(recipe, data, folder)
    except RecipeError as error:
        raise RecipeError(f"{arguments.recipe}: {error}") from None
    if arguments.resume and trainer.resume():
        print(f"resuming {folder} at step {trainer.step}", file=sys.stderr)

    stops: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if stops:  # asked twice: do not wait for the step to end
            raise KeyboardInterrupt
        stops.append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        outcome = trainer.fit(arguments.max_steps, should_stop=lambda: bool(stops))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

    if arguments.json:
        print(json.dumps({**dataclasses.asdict(outcome), "checkpoint": str(folder / "checkpoint")}))
    if outcome.interrupted:
        print(f"stopped at step {outcome.step} and saved; give the same command again to continue", file=sys.stderr)
        return 130
    if not arguments.json:
        print(f"{folder / 'checkpoint'}: step {outcome.step} of {outcome.total_steps}")
    return 0
