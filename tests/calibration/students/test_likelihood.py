"""The distillation report's measurements of a tiny student, against PyTorch's own density of the same samples."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from starflow.calibration.distribution import SEEDS
from starflow.calibration.students.likelihood import teacher_bits
from starflow.calibration.students.measurement import Measured, Way, measure
from starflow.calibration.students.report import print_ways
from starflow.runtime.sampler import Sampler
from starflow.training.checkpoint import load_autoregressive
from starflow.training.config import CheckpointConfig, LatentScaling
from tests.models import class_config, unconditional_config, write_checkpoint
from tests.students import write_student


def latents_config() -> CheckpointConfig:
    """Latents have no grey levels."""
    config = class_config()
    return config.model_copy(update={"image": config.image.model_copy(update={"mode": "latent"})})


def halved_config() -> CheckpointConfig:
    """Data that are pixels by half, so a grey level is half as wide."""
    return class_config().model_copy(update={"latent": LatentScaling(scale=0.5)})


@pytest.mark.parametrize(
    ("config", "guidance", "level"),
    [
        (unconditional_config, 0.0, 2 / 255),
        (halved_config, 1.5, 1 / 255),
        (latents_config, 1.5, 1.0),
    ],
)
def test_likelihood_of_each_way_is_that_of_pytorch(
    tmp_path: Path, config: Callable[[], CheckpointConfig], guidance: float, level: float
) -> None:
    images = 40  # two batches and a part of one; every class has its four
    write_checkpoint(tmp_path / "checkpoint", config())
    weights = (0.0, 3.0 if guidance else 0.0)
    write_student(tmp_path / "student", tmp_path / "checkpoint", 1, guidance=weights)
    shown: list[float] = []
    measured = measure(
        tmp_path / "checkpoint",
        [tmp_path / "student"],
        tmp_path / "bundle",
        None,
        images=images,
        guidance=guidance,
        passes=[0, 1],
        progress=lambda done, total, what="": shown.append(done / total) if what == "measuring" else None,
    )
    assert [way.plan for way in measured.ways] == ["sequential", "student", "student+1"]
    assert shown == sorted(shown) and shown[-1] == 1
    flow = load_autoregressive(tmp_path / "checkpoint")[1]
    labels = np.arange(images) % flow.num_classes if flow.num_classes else None
    condition = None if labels is None else flow.encode_labels(torch.from_numpy(labels))
    for way in measured.ways:
        with Sampler.open(tmp_path / "bundle", plan=way.plan, threads=1) as sampler:
            made = sampler.generate(sampler.noise(images, SEEDS[0]), labels, guidance=guidance)
        with torch.no_grad():
            nats = flow.log_likelihood(torch.from_numpy(made), condition)  # unguided
        expected = -(nats.double().mean() / made[0].size + math.log(level)) / math.log(2)
        assert way.bits_per_dim == pytest.approx(float(expected), abs=1e-4)
    exact, alone, _ = (way.bits_per_dim for way in measured.ways)
    assert exact is not None and alone is not None and abs(alone - exact) > 0.01  # a random student is no teacher


def test_samples_that_are_alike_are_likelier_and_far_ones_less_likely(tiny_bundle: Path) -> None:
    """How a report is read: less noise than the prior's collapses towards the mode, more is garbage."""
    labels = np.arange(8) % 10
    with Sampler.open(tiny_bundle, variant="cpu-fp32", threads=1) as sampler:
        bits = [
            teacher_bits(sampler, sampler.generate(sampler.noise(8, 3, temperature), labels), labels)
            for temperature in (0.5, 1.0, 2.0)
        ]
        far = teacher_bits(sampler, np.full((1, *sampler.noise_shape), 3e38, np.float32), np.array([1]))
    assert far is None
    assert None not in bits and bits[0] + 0.5 < bits[1] < bits[2] - 0.5  # type: ignore[operator]


def test_the_table_is_whole_on_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ways = (
        Way("sequential", 0.0, 12.34, 0.991, 0.928, 0.91, -1.2345, 1234.6),
        Way("student+16", 0.259, 12345.6, 0.913, 1.0, 0.958, None, 12.3),
    )
    print_ways(Measured(500, 1.5, ways, None))
    printed = capsys.readouterr().out
    assert " -1.234 " in printed and " inf " in printed and "100.37" in printed and "…" not in printed
