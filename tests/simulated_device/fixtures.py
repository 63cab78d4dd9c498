"""Bundles with real engines, and a device that can run them."""

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.export.tensorrt.build import build_bundle
from starflow.export.tensorrt.target import parse_target
from starflow.runtime.backends.tensorrt.flavour import load_flavour
from starflow.runtime.bundle.build_record import FlavourName, read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.training.config import CheckpointConfig
from tests.models import (
    class_config,
    features_config,
    tarflow_config,
    velocity_config,
    write_checkpoint,
    write_velocity,
)
from tests.simulated_device.device import SimulatedDevice
from tests.simulated_device.engine_library import EngineLibrary

Simulate = Callable[..., SimulatedDevice]


@pytest.fixture(scope="session")
def engine_library() -> EngineLibrary:
    """Knows the engines of the bundles below."""
    pytest.importorskip("tensorrt_rtx", reason="engines are built and parsed with TensorRT RTX")
    return EngineLibrary(load_flavour("tensorrt-rtx"))


@pytest.fixture(scope="session")
def tiny_engines(engine_library: EngineLibrary, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random STARFlow conditioned by a class token, batch 2, with fp16 engines for compute capability 8.9.

    It has two heads: TensorRT has no fused attention for a single one.
    """
    return _random_model(class_config(channels=64), tmp_path_factory.mktemp("tiny"), engine_library)


@pytest.fixture(scope="session")
def features_engines(engine_library: EngineLibrary, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same, conditioned by three tokens of features: its prefill is one run of three tokens."""
    config = features_config()
    model = config.model.model_copy(update={"channels": 64})
    return _random_model(
        config.model_copy(update={"model": model}), tmp_path_factory.mktemp("features"), engine_library
    )


@pytest.fixture(scope="session")
def tarflow_engines(engine_library: EngineLibrary, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random TARFlow of three classes: no prefill, a first token that passes unchanged, linear guidance."""
    return _random_model(tarflow_config(), tmp_path_factory.mktemp("tarflow"), engine_library)


@pytest.fixture(scope="session")
def digits_engines(repository: Path, engine_library: EngineLibrary, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The digits model, batch 2, with fp16 engines for compute capability 8.9."""
    checkpoint = repository / "examples" / "digits" / "checkpoint"
    return _with_engines(checkpoint, tmp_path_factory.mktemp("digits") / "bundle", engine_library)


@pytest.fixture(scope="session")
def velocity_engines(engine_library: EngineLibrary, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random velocity transformer of three classes, batch 2, with an fp16 engine for compute capability 8.9."""
    folder = tmp_path_factory.mktemp("velocity-engines")
    write_velocity(folder / "checkpoint", velocity_config())
    return _with_engines(folder / "checkpoint", folder / "bundle", engine_library)


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch, engine_library: EngineLibrary) -> Iterator[Simulate]:
    """Puts a simulated device in place of CUDA and TensorRT; when the test ends, everything must have been released."""
    from tests.simulated_device.cuda_runtime import simulated_cuda
    from tests.simulated_device.tensorrt_runtime import simulated_tensorrt

    devices = []

    def install(flavour: FlavourName = "tensorrt-rtx", **options: Any) -> SimulatedDevice:
        device = SimulatedDevice(**options)
        trt = simulated_tensorrt(device, engine_library, flavour)
        monkeypatch.setitem(sys.modules, trt.__name__, trt)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", simulated_cuda(device))
        devices.append(device)
        return device

    yield install
    if any(device.leaks() for device in devices):
        gc.collect()  # what hangs in a cycle, such as an exception's, is not lost
    assert [leak for device in devices for leak in device.leaks()] == []


def _random_model(config: CheckpointConfig, folder: Path, library: EngineLibrary) -> Bundle:
    write_checkpoint(folder / "checkpoint", config)
    return _with_engines(folder / "checkpoint", folder / "bundle", library)


def _with_engines(checkpoint: Path, root: Path, library: EngineLibrary) -> Bundle:
    export_checkpoint(checkpoint, root, ExportOptions(precisions=("fp16",), batch=2))
    bundle = Bundle.open(root)
    build_bundle(bundle, parse_target("tensorrt-rtx:8.9"))
    for record in read_builds(bundle):
        library.add(bundle, record)
    return bundle
