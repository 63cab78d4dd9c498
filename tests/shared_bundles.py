"""Checkpoints and bundles that tests share, each made once in a run; nobody may change them."""

from functools import cache
from pathlib import Path

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.checkpoint import load_autoregressive
from starflow.training.config import TextEncoding
from tests.made_once import MadeOnce
from tests.models import (
    class_config,
    denoising_config,
    features_config,
    patches_config,
    velocity_config,
    write_checkpoint,
    write_velocity,
)
from tests.students import write_quantised, write_taught

# Every trace reads the exporter's operators anew, from the source of some five hundred functions; they are always the same.
ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def emoji_bundle(repository: Path, made_once: MadeOnce) -> Path:
    """The shipped text-to-image model for batches of three, text encoder and autoencoder included."""
    checkpoint = repository / "examples/emoji/checkpoint"
    return (
        made_once("emoji", lambda folder: export_checkpoint(checkpoint, folder / "bundle", ExportOptions(batch=3)))
        / "bundle"
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(made_once: MadeOnce) -> Path:
    """A random class-conditional STARFlow (see tests/models.py)."""
    return made_once("tiny", lambda folder: write_checkpoint(folder / "checkpoint", class_config())) / "checkpoint"


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> AutoregressiveFlow:
    """Its PyTorch model."""
    return load_autoregressive(tiny_checkpoint)[1]


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, made_once: MadeOnce) -> Path:
    """Its bundle, both lowerings, fp32 and fp16, batch 2."""
    options = ExportOptions(precisions=("fp32", "fp16"), batch=2)
    return (
        made_once("tiny-bundle", lambda folder: export_checkpoint(tiny_checkpoint, folder / "bundle", options))
        / "bundle"
    )


@pytest.fixture(scope="session")
def t5_folder(made_once: MadeOnce) -> Path:
    """A random T5 text encoder of width 32 (see tests/text_encoders.py)."""

    def fill(folder: Path) -> None:
        from tests.text_encoders import write_t5

        write_t5(folder / "t5")

    return made_once("encoders", fill) / "t5"


@pytest.fixture(scope="session")
def captioned_checkpoint(t5_folder: Path, made_once: MadeOnce) -> Path:
    """A random STARFlow conditioned on 8 tokens of that encoder."""
    text = TextEncoding(encoder=str(t5_folder), template="a {caption}")
    config = features_config(tokens=8, width=32).model_copy(update={"text": text})
    return made_once("captioned", lambda folder: write_checkpoint(folder / "checkpoint", config)) / "checkpoint"


@pytest.fixture(scope="session")
def captioned_bundle(captioned_checkpoint: Path, made_once: MadeOnce) -> Path:
    """Its bundle, text encoder included, batch 2."""
    options = ExportOptions(batch=2)
    made = made_once(
        "captioned-bundle", lambda folder: export_checkpoint(captioned_checkpoint, folder / "bundle", options)
    )
    return made / "bundle"


@pytest.fixture(scope="session")
def denoising_model(made_once: MadeOnce) -> tuple[Path, AutoregressiveFlow]:
    """The checkpoint of a random STARFlow with text and a learned denoiser that reads it, and its model."""

    def fill(folder: Path) -> None:
        write_checkpoint(folder / "checkpoint", denoising_config(), seed=8)  # rounding hardly changes its scores

    checkpoint = made_once("denoising", fill) / "checkpoint"
    return checkpoint, load_autoregressive(checkpoint)[1]


@pytest.fixture(scope="session")
def denoising_bundle(denoising_model: tuple[Path, AutoregressiveFlow], made_once: MadeOnce) -> Path:
    """Its bundle with both denoisers, fp32 and fp16, batch 2: images that are wider than high, and a text of five tokens."""
    options = ExportOptions(
        batch=2, shape=(4, 12), condition_tokens=5, precisions=("fp32", "fp16"), denoisers=("score", "learned")
    )
    checkpoint, _ = denoising_model
    return (
        made_once("denoising-bundle", lambda folder: export_checkpoint(checkpoint, folder / "bundle", options))
        / "bundle"
    )


@pytest.fixture(scope="session")
def continuous_checkpoint(made_once: MadeOnce) -> Path:
    """A random class-conditional velocity transformer (see tests/models.py)."""
    return made_once("velocity", lambda folder: write_velocity(folder / "checkpoint", velocity_config())) / "checkpoint"


@pytest.fixture(scope="session")
def continuous_bundle(continuous_checkpoint: Path, made_once: MadeOnce) -> Path:
    """Its bundle, both lowerings, fp32 and fp16, batch 2."""
    options = ExportOptions(precisions=("fp32", "fp16"), batch=2)
    made = made_once(
        "velocity-bundle", lambda folder: export_checkpoint(continuous_checkpoint, folder / "bundle", options)
    )
    return made / "bundle"


@pytest.fixture(scope="session")
def patches_checkpoint(made_once: MadeOnce) -> Path:
    """A random STARFlow whose flow blocks have patches of their own."""
    return made_once("patches", lambda folder: write_checkpoint(folder / "checkpoint", patches_config())) / "checkpoint"


@pytest.fixture(scope="session")
def patches_bundle(patches_checkpoint: Path, made_once: MadeOnce) -> Path:
    """Its bundle, both lowerings, batch 2, with the score."""
    options = ExportOptions(batch=2, denoisers=("score",))
    return (
        made_once("patches-bundle", lambda folder: export_checkpoint(patches_checkpoint, folder / "bundle", options))
        / "bundle"
    )


@pytest.fixture(scope="session")
def students_folder(made_once: MadeOnce) -> Path:
    """A random class-conditional STARFlow, students of its two flow blocks, and their bundle for batches of one and three."""
    return made_once("students-class-token", lambda folder: write_taught(folder, class_config()))


@pytest.fixture(scope="session")
def students_bundle(students_folder: Path) -> Path:
    """That bundle: the cpu lowering in fp32."""
    return students_folder / "bundle"


@pytest.fixture(scope="session")
def quantised_students_bundle(made_once: MadeOnce) -> Path:
    """A class-conditional STARFlow of width 128 for batches of one and three, with students of both blocks in float32 and 8 bits."""
    return made_once("students-quantised", write_quantised) / "bundle"
