"""Distil a flow block, the deep one by default, into a student, which makes all of its tokens in one pass.

The exact sampler draws pairs of noise and tokens, under guidance weights of a range. A network learns to make the tokens of the
noise, by their squared error, by their likelihood, so that samples stay as varied, and by the teacher's hidden states; that of a
shallow block also by its divergence from the teacher's exact density. The folder keeps pairs/, checkpoint/ and checkpoint-best/
(the student), state.pt, log.jsonl and samples/. To continue a run that was stopped or killed, give the same command again.

`starflow export CHECKPOINT -o BUNDLE --student FOLDER` puts the student into a bundle, and `--plan student` samples with it. The
exact sampler stays the default.

Examples:
  starflow distill examples/digits/checkpoint -o out/student
  starflow distill examples/digits/checkpoint -o out/student --steps 20000 --layers 4 --stages 2
  starflow distill examples/digits/checkpoint -o out/student1 --block 1 --beside out/student/checkpoint-best
  starflow distill examples/emoji/checkpoint -o out/student --captions-file captions.txt --set training.batch_size=32
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from starflow.runtime.plain.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from starflow.training.recipe import StudentRecipe

# What a distillation changes of `RunSettings`.
LEAST_MEASURED = 16  # samples that a distribution is told by
TRAINING = {
    "batch_size": 64,
    "learning_rate": 5e-4,
    "warmup_steps": 100,
    "ema_decay": 0.995,
    "log_every": 10,
    "evaluate_every": 100,
    "sample_every": 500,
    "checkpoint_every": 100,
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", type=Path, help="folder of the teacher, an autoregressive flow")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write the run to")
    student = parser.add_argument_group("student")
    student.add_argument("--block", type=int, metavar="B", help="flow block to learn (default: the deep one)")
    student.add_argument("--layers", type=int, metavar="L", help="layers of a stage (default: those of the flow block)")
    student.add_argument("--stages", type=int, metavar="K", help="passes in a chain, each its own network (default: 1)")
    student.add_argument(
        "--guidance", type=float, nargs=2, metavar=("LOW", "HIGH"), help="guidance weights to learn (default: 0 3)"
    )
    learning = parser.add_argument_group("learning")
    learning.add_argument("--pairs", type=int, metavar="N", help="pairs to draw (default: 8192)")
    learning.add_argument("--steps", type=int, default=4000, metavar="N", help="updates (default: 4000)")
    learning.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="change a field of the sections objective and training, such as training.batch_size=32; may be repeated",
    )
    learning.add_argument("--max-steps", type=int, metavar="N", help="stop and save after N steps of the run")
    learning.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue the run in the folder, if there is one (default: yes)",
    )
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument(
        "--images",
        type=int,
        default=512,
        metavar="N",
        help="samples of each way that are compared (default: 512; 0: none)",
    )
    measuring.add_argument(
        "--passes",
        type=int,
        nargs="+",
        default=[0, 1, 2, 4],
        metavar="N",
        help="numbers of exact passes after the student's own to compare (default: 0 1 2 4)",
    )
    measuring.add_argument(
        "--beside",
        type=Path,
        nargs="+",
        default=[],
        metavar="STUDENT",
        help="students of other flow blocks to measure together with this one: their checkpoint-best/",
    )
    conditions = parser.add_argument_group("conditions, for a model that takes features")
    conditions.add_argument("--captions-file", type=Path, metavar="FILE", help="text file with a caption a line")
    conditions.add_argument("--condition", type=Path, metavar="FILE.npy", help="condition tokens [N, m, width]")
    conditions.add_argument("--null-condition", type=Path, metavar="FILE.npy", help="null condition tokens [m, width]")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Distil. Exit status 0 if the run is complete or reached --max-steps, 130 if it was interrupted."""
    from starflow.calibration.students.distillation import ConditionFiles, prepare
    from starflow.calibration.students.report import print_ways
    from starflow.runtime.plain.progress import progress_bar
    from starflow.training.runs.run_folder import alone_in
    from starflow.training.runs.stop_signals import stop_signals

    if arguments.max_steps is not None and arguments.max_steps < 1:
        raise UsageError(f"--max-steps: found {arguments.max_steps}, expected a number of at least 1")
    if arguments.images and arguments.images < LEAST_MEASURED:
        raise UsageError(f"--images: found {arguments.images}, expected 0 or at least {LEAST_MEASURED}")
    recipe = _recipe(arguments)
    files = ConditionFiles(arguments.condition, arguments.null_condition, arguments.captions_file)
    with alone_in(arguments.out):
        with progress_bar("drawing pairs", enabled=not arguments.json) as bar:
            distillation = prepare(arguments.checkpoint, recipe, arguments.out, files, bar, arguments.beside)
        if arguments.resume and distillation.run.resume():
            print(f"resuming {arguments.out} at step {distillation.run.step}", file=sys.stderr)
        with stop_signals() as stops:
            outcome = distillation.run.fit(arguments.max_steps, should_stop=lambda: bool(stops))
        measured = None
        if not outcome.interrupted and arguments.images:
            with progress_bar("measuring", enabled=not arguments.json) as bar:
                measured = distillation.measure(arguments.images, tuple(arguments.passes), bar)
    student = arguments.out / "checkpoint-best"
    if arguments.json:
        ways = None if measured is None else [dataclasses.asdict(way) for way in measured.ways]
        print(json.dumps({**dataclasses.asdict(outcome), "student": str(student), "ways": ways}))
    if outcome.interrupted:
        print(f"stopped at step {outcome.step} and saved; give the same command again to continue", file=sys.stderr)
        return 130
    if not arguments.json:
        print(f"{student}: step {outcome.best_step} of {outcome.total_steps}")
        if measured is not None:
            print_ways(measured)
    return 0


def _recipe(arguments: argparse.Namespace) -> "StudentRecipe":
    """The arguments as a recipe.

    Raises:
        RecipeError: a value is out of range.
    """
    from pydantic import ValidationError

    from starflow.runtime.plain.validation import one_line
    from starflow.training.recipe import StudentRecipe, overridden

    names = ("block", "layers", "stages", "guidance", "pairs")
    student = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    content = overridden({"student": student, "training": {**TRAINING, "steps": arguments.steps}}, arguments.set)
    try:
        return StudentRecipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(one_line(error)) from None
