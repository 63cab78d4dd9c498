"""Train a flow, an autoencoder or its decoder from a recipe.

Reads a YAML recipe, trains, and writes a folder with checkpoint/ (the averaged weights; those of a flow are ready for
`starflow export`), checkpoint-best/ (those that were best on the validation part of the data), state.pt, log.jsonl,
samples/ and tensorboard/. To continue a run that was stopped or killed, give the same command again.

Example: starflow train examples/digits/recipe.yaml --out out/digits/run --set training.steps=2000
         torchrun --nproc-per-node 8 -m starflow.runtime train recipe.yaml --parallel fsdp
"""

import argparse
import dataclasses
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from starflow.runtime.plain.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from starflow.training.data.samples import Dataset
    from starflow.training.recipe import AnyRecipe
    from starflow.training.runs.engine import Engine
    from starflow.training.runs.run import Outcome, TrainingRun


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
    parser.add_argument(
        "--parallel",
        choices=("ddp", "fsdp"),
        help="train a flow in the processes of torchrun: ddp keeps the whole model in each, fsdp a share of it",
    )
    parser.add_argument("--max-steps", type=int, metavar="N", help="stop and save after N steps of the run")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Train. Exit status 0 if the run is complete or reached --max-steps, 130 if it was interrupted."""
    from starflow.training.recipe import load_recipe
    from starflow.training.runs.engine import engine_for

    if arguments.max_steps is not None and arguments.max_steps < 1:
        raise UsageError(f"--max-steps: found {arguments.max_steps}, expected a number of at least 1")
    recipe = load_recipe(arguments.recipe, arguments.set)
    folder = arguments.out or Path("out") / arguments.recipe.stem
    with engine_for(arguments.parallel, cuda=_on_cuda(recipe, arguments.recipe)) as engine:
        outcome = _fit(arguments, recipe, folder, engine)
        if engine.rank > 0:
            return 130 if outcome.interrupted else 0
    if arguments.json:
        folders = {"checkpoint": str(folder / "checkpoint"), "best_checkpoint": str(folder / "checkpoint-best")}
        print(json.dumps({**dataclasses.asdict(outcome), **folders}))
    if outcome.interrupted:
        print(f"stopped at step {outcome.step} and saved; give the same command again to continue", file=sys.stderr)
        return 130
    if not arguments.json:
        print(f"{folder / 'checkpoint'}: step {outcome.step} of {outcome.total_steps}")
    return 0


def _fit(arguments: argparse.Namespace, recipe: "AnyRecipe", folder: Path, engine: "Engine") -> "Outcome":
    """Train, in one process or as one of several."""
    from starflow.training.runs.run_folder import alone_in
    from starflow.training.runs.stop_signals import stop_signals

    with ExitStack() as held:
        # The first process locks the folder and writes what the others then read: features of captions, and latents.
        data = None
        if engine.rank == 0:
            held.enter_context(alone_in(folder))
            data = _data(recipe, folder)
        engine.any(False)  # wait for it
        data = data or _data(recipe, folder)
        try:
            trainer = _trainer(recipe, data, folder, engine)
        except RecipeError as error:
            raise RecipeError(f"{arguments.recipe}: {error}") from None
        if arguments.resume and trainer.resume() and engine.rank == 0:
            print(f"resuming {folder} at step {trainer.step}", file=sys.stderr)
        with stop_signals() as stops:
            return trainer.fit(arguments.max_steps, should_stop=lambda: bool(stops))


def _data(recipe: "AnyRecipe", folder: Path) -> "Dataset":
    """The data of a recipe; those of a flow over latents are encoded."""
    from starflow.training.data.dataset import load_dataset
    from starflow.training.recipe import Recipe
    from starflow.training.trainer import in_latents

    data = load_dataset(recipe.data, cache=folder)
    return in_latents(recipe, data, folder) if isinstance(recipe, Recipe) else data


def _on_cuda(recipe: "AnyRecipe", path: Path) -> bool:
    from starflow.training.runs.run import device_named

    try:
        return device_named(recipe.training.device).type == "cuda"
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def _trainer(recipe: "AnyRecipe", data: "Dataset", folder: Path, engine: "Engine") -> "TrainingRun":
    """The run of a recipe.

    Raises:
        UsageError: several processes for a recipe that takes one.
    """
    from starflow.training.autoencoder.trainer import AutoencoderTrainer, DecoderTrainer
    from starflow.training.recipe import AutoencoderRecipe, DecoderRecipe
    from starflow.training.trainer import Trainer

    if isinstance(recipe, AutoencoderRecipe | DecoderRecipe) and engine.parallel:
        raise UsageError("--parallel trains flows; an autoencoder takes one process")
    match recipe:
        case AutoencoderRecipe():
            return AutoencoderTrainer(recipe, data, folder)
        case DecoderRecipe():
            return DecoderTrainer(recipe, data, folder)
    return Trainer(recipe, data, folder, engine)
