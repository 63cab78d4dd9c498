"""Students with random weights, whose every part has a say, written as folders."""

from pathlib import Path

import torch

from starflow.training.checkpoint import open_checkpoint
from starflow.training.students.config import StudentConfig
from starflow.training.students.folder import REPORT, StudentFigures, save_student
from starflow.training.students.network import Student

FIGURES = StudentFigures(
    images=64, guidance=1.5, divergence=0.25, pair_error=0.31, frechet=2.5, frechet_floor=0.5, diversity=0.9
)


def write_student(
    folder: Path,
    checkpoint: Path,
    block: int,
    *,
    guidance: tuple[float, float] = (0.0, 3.0),
    figures: StudentFigures | None = FIGURES,
    teacher: str | None = None,
) -> Student:
    """Write a random student of two stages for a flow block of a checkpoint; return it."""
    config, tensors = open_checkpoint(checkpoint)
    made = StudentConfig(
        model=config.model,
        conditioning=config.conditioning,
        teacher=teacher or tensors.sha256(),
        block=block,
        layers=1,
        stages=2,
        guidance=guidance,
    )
    student, generator = Student(made), torch.Generator().manual_seed(block)
    with torch.no_grad():
        for parameter in student.parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 / width**0.5)
    report = {} if figures is None else {REPORT: figures.model_dump_json()}
    save_student(folder, student, made, report)
    return student.eval()
