"""A student's folder: `config.json`, `model.safetensors`, and `report.json` with what was measured of it."""

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import Field
from torch import nn

from starflow.runtime.plain.errors import CheckpointError, UsageError
from starflow.runtime.plain.own_folder import STUDENT
from starflow.training.frozen import Frozen, read_json
from starflow.training.students.config import StudentConfig
from starflow.training.students.network import Student
from starflow.training.tensor_file import CheckpointTensors, check_digest, checkpoint_folder, write_tensors

CONFIG, WEIGHTS, REPORT = "config.json", "model.safetensors", "report.json"


class StudentFigures(Frozen):
    """How near the distribution of a student is to its teacher's, measured on noise that it was not trained on.

    `divergence` is exact up to the noise it is averaged over: both densities are known.
    """

    beside: tuple[int, ...] = ()  # other flow blocks that their students did as well
    images: int = Field(gt=0)  # that were measured
    guidance: float = Field(ge=0)  # weight they were made with
    divergence: float  # KL(student || teacher) of the block's tokens, nats per value
    pair_error: float = Field(ge=0)  # |student - teacher|^2 / |teacher|^2 of tokens from the same noise, its root
    frechet: float = Field(ge=0)  # Frechet distance of finished data to those of the teacher
    frechet_floor: float = Field(ge=0)  # the same between two sets of the teacher's
    diversity: float = Field(gt=0)  # standard deviation within a condition, over that of the teacher


def read_student(folder: Path) -> Student:
    """Read a student, to be evaluated.

    Raises:
        UsageError: there is no such folder.
        CheckpointError: it does not hold a student, or is damaged.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise UsageError(f"{folder}: {found}; a student is a folder that `starflow distill` writes")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: has no {name}; `starflow distill` writes students")
    config = read_json(folder / CONFIG, StudentConfig)
    check_digest(folder / WEIGHTS)
    with torch.device("meta"):
        expected = Student(config)
    tensors = CheckpointTensors(folder / WEIGHTS)
    shapes = {name: tuple(value.shape) for name, value in expected.state_dict().items()}
    if {name: tensors.shape(name) for name in tensors} != shapes:
        raise CheckpointError(f"{folder / WEIGHTS}: is not of the student in {CONFIG}; copy the folder again")
    student = Student(config)
    student.load_state_dict({name: torch.from_numpy(read()) for name, read in tensors.items()})
    return student.eval()


def read_figures(folder: Path) -> StudentFigures | None:
    """What was measured of a student, or None if nothing was."""
    return read_json(folder / REPORT, StudentFigures) if (folder / REPORT).is_file() else None


def save_student(
    folder: Path, student: nn.Module, config: StudentConfig, extra_files: Mapping[str, str] | None = None
) -> None:
    """Write a folder, whole or not at all; a student that is there gives way.

    Raises:
        CheckpointError: see `write_tensors`; or the disk is full.
    """
    with checkpoint_folder(folder, STUDENT, extra_files) as temporary:
        write_tensors(temporary / WEIGHTS, student.state_dict(), half=False)
        (temporary / CONFIG).write_text(config.model_dump_json(indent=2, exclude_none=True) + "\n")
