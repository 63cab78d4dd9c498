"""From a checkpoint to a student: the teacher's bundle, pairs drawn from it, and the run that learns from them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from starflow.calibration.cases import GivenConditions, read_conditions
from starflow.calibration.students.drawing import draw_pairs
from starflow.calibration.students.measurement import Measured, measure
from starflow.calibration.students.teacher_bundle import teacher_bundle
from starflow.runtime.plain.atomic_write import write_text
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.images import write_png
from starflow.runtime.plain.input_files import load_captions
from starflow.runtime.plain.progress import Report, no_report
from starflow.training.autoregressive.config import block_configs
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.checkpoint import load_autoregressive, open_checkpoint
from starflow.training.config import CheckpointConfig
from starflow.training.data.samples import Dataset
from starflow.training.recipe import StudentRecipe
from starflow.training.students.config import StudentConfig
from starflow.training.students.folder import REPORT, StudentFigures, read_student
from starflow.training.students.pairs import Pairs, PairSet, load_pairs
from starflow.training.students.trainer import StudentRun

TEACHER = "teacher.bundle"  # in the folder of a run; with the student in it once that was measured
MOST_HELD_OUT = 512  # pairs of the validation part, and of the test part


@dataclass(frozen=True)
class Distillation:
    """A student's run, and what it is measured with."""

    checkpoint: Path  # of the teacher
    given: GivenConditions | None
    run: StudentRun
    beside: Mapping[int, Path]  # folders of students that are measured together with this one, by their flow blocks

    def measure(self, images: int, passes: Sequence[int], progress: Report = no_report) -> Measured:
        """Compare the best student with its teacher, and put the figures and a picture beside it.

        Args:
            images: Samples of each way.
            passes: Numbers of exact passes after the student's own; the student alone is always measured.
        """
        folder = self.run.folder / "checkpoint-best"
        measured = measure(
            self.checkpoint,
            [folder, *self.beside.values()],
            self.run.folder / TEACHER,
            self.given,
            images=images,
            guidance=self.run.config.middle_guidance,
            passes=sorted({0, *passes}),
            progress=progress,
        )
        self.run.average = read_student(folder).to(self.run.device)
        judged, (exact, alone, *_) = self.run.judge(self.run.data.test), measured.ways
        figures = StudentFigures(
            beside=tuple(sorted(self.beside)),
            images=images,
            guidance=measured.guidance,
            divergence=judged["divergence"],
            pair_error=judged["pair_error"],
            frechet=alone.frechet,
            frechet_floor=exact.frechet,
            diversity=alone.diversity,
        )
        write_text(folder / REPORT, figures.model_dump_json(indent=2) + "\n")
        if measured.picture is not None:
            write_png(self.run.folder / "student.png", measured.picture)
        return measured


@dataclass(frozen=True)
class ConditionFiles:
    """What a model that takes features is sampled with; see `read_conditions`."""

    condition: Path | None = None
    null_condition: Path | None = None
    captions: Path | None = None


def student_config(checkpoint: Path, recipe: StudentRecipe) -> tuple[CheckpointConfig, StudentConfig]:
    """The teacher's configuration, and what a recipe asks for.

    Raises:
        CheckpointError, UsageError: the checkpoint cannot be read, or is no autoregressive flow.
    """
    config, tensors = open_checkpoint(checkpoint)
    model, options = config.model, recipe.student
    if model.family == "continuous-flow":
        raise UsageError(
            f"{checkpoint}: a continuous flow has no flow blocks; `starflow calibrate --plan` makes it faster"
        )
    unguided = config.conditioning.kind == "none"
    block = model.num_blocks - 1 if options.block is None else options.block
    blocks = block_configs(model)
    having = [each.index for each in blocks if each.layers]
    if block not in having:
        raise UsageError(
            f"--block: found {block}, expected a flow block that has a network: {', '.join(map(str, having))}"
        )
    student = StudentConfig(
        model=model,
        conditioning=config.conditioning,
        teacher=tensors.sha256(),
        block=block,
        layers=options.layers or blocks[block].layers,
        stages=options.stages,
        guidance=(0.0, 0.0) if unguided else options.guidance,
    )
    return config, student


def by_block(folders: Sequence[Path], student: StudentConfig) -> dict[int, Path]:
    """Folders of students that can run together with another one, by their flow blocks.

    Raises:
        UsageError, CheckpointError: one of them cannot be read, has another teacher, is of a flow block named twice, or
            was not trained for the guidance weight that the other one is measured at.
    """
    taken: dict[int, Path] = {}
    for folder in folders:
        found = read_student(folder).config
        if found.teacher != student.teacher:
            raise UsageError(f"--beside {folder}: was distilled from another checkpoint, sha256 {found.teacher[:16]}")
        if found.block in taken or found.block == student.block:
            raise UsageError(f"--beside {folder}: is of flow block {found.block}, which already has a student here")
        (low, high), weight = found.guidance, student.middle_guidance
        if not low <= weight <= high:
            raise UsageError(
                f"--beside {folder}: was trained for guidance {low:g} to {high:g}, and this student is measured at {weight:g}"
            )
        taken[found.block] = folder
    return taken


def prepare(
    checkpoint: Path,
    recipe: StudentRecipe,
    folder: Path,
    files: ConditionFiles,
    progress: Report = no_report,
    beside: Sequence[Path] = (),
) -> Distillation:
    """Draw what is missing, and prepare the run in a folder: teacher.bundle/, pairs/, and what every run has.

    Args:
        checkpoint: The teacher's folder.
        recipe: What is learned, and how.
        folder: The run's.
        files: What a model that takes features is sampled with.
        progress: Told of pairs drawn.
        beside: Folders of students of other flow blocks, which are measured together with this one.

    Raises:
        CheckpointError, UsageError, RecipeError: what is given cannot be read, or does not fit.
    """
    config, student = student_config(checkpoint, recipe)
    students = by_block(beside, student)
    if files.captions:
        load_captions(files.captions)  # so that a fault in it does not wait for the export
    bundle = teacher_bundle(checkpoint, student.teacher, folder / TEACHER, progress)
    given = read_conditions(bundle, files.condition, files.null_condition, files.captions)
    pairs = PairSet(
        teacher=student.teacher,
        block=student.block,
        seed=recipe.training.seed,
        guidance=student.guidance,
        conditions=None if given is None else _digest(given),
        count=recipe.student.pairs,
    )
    draw_pairs(bundle, pairs, folder / "pairs", given, progress)
    flow = load_autoregressive(checkpoint)[1]
    data = _dataset(load_pairs(folder / "pairs"), config, flow, given, pairs)
    table = None if given is None else torch.from_numpy(given.tokens)
    return Distillation(checkpoint, given, StudentRun(recipe, student, flow, data, table, folder), students)


def _dataset(
    pairs: Pairs, config: CheckpointConfig, flow: AutoregressiveFlow, given: GivenConditions | None, record: PairSet
) -> Dataset:
    """Pairs are drawn independently, so any part of them may be held out: the last ones."""
    held_out = min(MOST_HELD_OUT, len(pairs) // 8)
    index = torch.arange(len(pairs)).split([len(pairs) - 2 * held_out, held_out, held_out])
    train, validation, test = (pairs[part] for part in index)
    digest = hashlib.sha256(record.model_dump_json().encode()).hexdigest()
    return Dataset(train, validation, test, config.conditioning, _null(config, flow, given), split=digest)


def _null(config: CheckpointConfig, flow: AutoregressiveFlow, given: GivenConditions | None) -> Tensor | None:
    """The null condition tokens [m, width], of a model that takes tokens."""
    if given is not None:
        return None if given.null is None else torch.from_numpy(given.null)
    if config.conditioning.kind == "class" and config.model.family == "starflow":
        return flow.encode_labels(torch.tensor([config.conditioning.num_classes]))[0]
    return None


def _digest(given: GivenConditions) -> str:
    """SHA-256 of the features of captions."""
    digest = hashlib.sha256(given.tokens.tobytes())
    if given.null is not None:
        digest.update(given.null.tobytes())
    return digest.hexdigest()
