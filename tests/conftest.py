"""What every test may rely on."""

import signal
from pathlib import Path

import hypothesis
import pytest

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.training.autoregressive.config import StarflowConfig
from starflow.training.autoregressive.model import AutoregressiveFlow
from tests.models import class_config, features_config, velocity_config, write_checkpoint, write_velocity
from tests.simulated_device.fixtures import (  # noqa: F401 (fixtures)
    digits_engines,
    engine_library,
    features_engines,
    simulate,
    tarflow_engines,
    tiny_engines,
    velocity_engines,
)

# A shared machine may stall for longer than Hypothesis's default of 200 ms; slowness is not what these tests are about.
hypothesis.settings.register_profile("starflow", deadline=None)
hypothesis.settings.load_profile("starflow")


# Started in the background by a shell, a process ignores Ctrl-C, and so would every process that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where no NVIDIA driver is loaded."""
    if Path("/dev/nvidiactl").exists():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU; none is visible here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def emoji_bundle(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped text-to-image model for batches of three, text encoder and autoencoder included."""
    bundle = tmp_path_factory.mktemp("emoji") / "bundle"
    export_checkpoint(repository / "examples/emoji/checkpoint", bundle, ExportOptions(batch=3))
    return bundle


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random class-conditional STARFlow (see tests/models.py)."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    write_checkpoint(folder, class_config())
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> AutoregressiveFlow:
    """Its PyTorch model."""
    from starflow.training.checkpoint import load_autoregressive

    return load_autoregressive(tiny_checkpoint)[1]


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """Its bundle, both lowerings, fp32 and fp16, batch 2."""
    bundle = tiny_checkpoint.parent / "bundle"
    export_checkpoint(tiny_checkpoint, bundle, ExportOptions(precisions=("fp32", "fp16"), batch=2))
    return bundle


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5 text encoder of width 32 (see tests/text_encoders.py); not to be changed."""
    from tests.text_encoders import write_t5

    return write_t5(tmp_path_factory.mktemp("encoders") / "t5")


@pytest.fixture(scope="session")
def captioned_checkpoint(t5_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random STARFlow conditioned on 8 tokens of that encoder."""
    from starflow.training.config import TextEncoding

    folder = tmp_path_factory.mktemp("captioned") / "checkpoint"
    text = TextEncoding(encoder=str(t5_folder), template="a {caption}")
    write_checkpoint(folder, features_config(tokens=8, width=32).model_copy(update={"text": text}))
    return folder


@pytest.fixture(scope="session")
def captioned_bundle(captioned_checkpoint: Path) -> Path:
    """Its bundle, text encoder included, batch 2; not to be changed."""
    bundle = captioned_checkpoint.parent / "bundle"
    export_checkpoint(captioned_checkpoint, bundle, ExportOptions(batch=2))
    return bundle


@pytest.fixture(scope="session")
def denoising_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AutoregressiveFlow]:
    """The checkpoint of a random STARFlow with text and a learned denoiser that reads it, and its model."""
    changes = {"learnable_self_denoiser": True, "conditional_denoiser": True, "layers_per_block": (1, 1)}
    network = StarflowConfig(**features_config().model.model_dump() | changes)
    folder = tmp_path_factory.mktemp("denoising") / "checkpoint"
    config = features_config().model_copy(update={"model": network, "noise_std": 0.3})
    return folder, write_checkpoint(folder, config)


@pytest.fixture(scope="session")
def denoising_bundle(denoising_model: tuple[Path, AutoregressiveFlow]) -> Path:
    """Its bundle with both denoisers, fp32 and fp16, batch 2; not to be changed."""
    path = denoising_model[0].parent / "bundle"
    options = ExportOptions(batch=2, precisions=("fp32", "fp16"), denoisers=("score", "learned"))
    export_checkpoint(denoising_model[0], path, options)
    return path


@pytest.fixture(scope="session")
def velocity_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random class-conditional velocity transformer (see tests/models.py)."""
    folder = tmp_path_factory.mktemp("velocity") / "checkpoint"
    write_velocity(folder, velocity_config())
    return folder


@pytest.fixture(scope="session")
def velocity_bundle(velocity_checkpoint: Path) -> Path:
    """Its bundle, both lowerings, fp32 and fp16, batch 2; not to be changed."""
    bundle = velocity_checkpoint.parent / "bundle"
    export_checkpoint(velocity_checkpoint, bundle, ExportOptions(precisions=("fp32", "fp16"), batch=2))
    return bundle
