"""Students with random weights, whose every part has a say, written as folders."""

import math
from pathlib import Path

import pytest
import torch

from starflow.calibration.cases import draw_cases
from starflow.calibration.weights import student_weights
from starflow.calibration.weights.calibration import calibrate_weights
from starflow.calibration.weights.results import WeightRequest
from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.bundle.bundle import Bundle
from starflow.training.autoregressive.config import StarflowConfig, TarflowConfig
from starflow.training.checkpoint import open_checkpoint
from starflow.training.config import CheckpointConfig
from starflow.training.students.config import StudentConfig
from starflow.training.students.folder import REPORT, StudentFigures, save_student
from starflow.training.students.network import Student
from tests.models import class_config, write_checkpoint

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


def write_quantised(folder: Path) -> None:
    """Write what `write_taught` does of a model of width 128, for batches of one and three, with weights of 8 bits."""
    write_taught(folder, class_config(channels=128, layers_per_block=(1, 1)))
    bundle = Bundle.open(folder / "bundle")
    request = WeightRequest("int8", budget=0.05, threads=1, product="row")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(student_weights, "PAYS", math.inf)  # whatever the machine says
        calibrate_weights(bundle, request, draw_cases(bundle, 6, 3))


def write_taught(folder: Path, config: CheckpointConfig) -> None:
    """Write a random checkpoint, a student of each of its flow blocks, and their bundle; that of class tokens for two batch sizes."""
    assert isinstance(config.model, StarflowConfig | TarflowConfig)
    write_checkpoint(folder / "checkpoint", config)
    blocks = range(config.model.num_blocks)
    students = [str(folder / f"student{block}") for block in blocks]
    for block in blocks:
        write_student(folder / f"student{block}", folder / "checkpoint", block)
    batch = (1, 3) if config.conditioning.kind == "class" and config.model.family == "starflow" else 3
    options = ExportOptions(batch=batch, students=students[::-1], lowerings=["cpu"])
    export_checkpoint(folder / "checkpoint", folder / "bundle", options)
