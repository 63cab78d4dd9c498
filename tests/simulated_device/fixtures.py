"""Bundles with real engines, and a device that can run them."""

import gc
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.export.tensorrt.build import build_bundle
from starflow.export.tensorrt.target import parse_target
from starflow.runtime.backends.tensorrt.flavour import load_flavour
from starflow.runtime.bundle.build_record import FlavourName, read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_build import read_network_builds
from starflow.runtime.command_line import main
from starflow.training.config import CheckpointConfig
from tests.made_once import MadeOnce
from tests.models import (
    class_config,
    features_config,
    patches_config,
    tarflow_config,
    velocity_config,
    write_captioned_latents,
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


@dataclass(frozen=True)
class BuildEngines:
    """Builds fp16 engines for compute capability 8.9 of a checkpoint at batch 2, and makes them known to the library."""

    library: EngineLibrary
    made_once: MadeOnce
    folders: pytest.TempPathFactory

    def __call__(self, name: str, checkpoint: Path) -> Bundle:
        def fill(folder: Path) -> None:
            export_checkpoint(checkpoint, folder / "bundle", ExportOptions(precisions=("fp16",), batch=2))
            build_bundle(Bundle.open(folder / "bundle"), parse_target("tensorrt-rtx:8.9"))

        # Each process has a copy: who runs an engine leaves compiled kernels beside it.
        root = self.folders.mktemp(name) / "bundle"
        shutil.copytree(self.made_once(f"{name}-engines", fill) / "bundle", root)
        bundle = Bundle.open(root)
        self.library.add(bundle, *read_builds(bundle))
        return bundle

    def random(self, name: str, config: CheckpointConfig) -> Bundle:
        """The same of a random model."""
        write = write_velocity if config.model.family == "continuous-flow" else write_checkpoint
        made = self.made_once(f"{name}-to-build", lambda folder: write(folder / "checkpoint", config))
        return self(name, made / "checkpoint")


@pytest.fixture(scope="session")
def build_engines(
    engine_library: EngineLibrary, made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory
) -> BuildEngines:
    return BuildEngines(engine_library, made_once, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_engines(build_engines: BuildEngines) -> Bundle:
    """A random STARFlow conditioned by a class token.

    It has two heads: TensorRT has no fused attention for a single one.
    """
    return build_engines.random("tiny", class_config(channels=64))


@pytest.fixture(scope="session")
def features_engines(build_engines: BuildEngines) -> Bundle:
    """The same, conditioned by three tokens of features: its prefill is one run of three tokens."""
    config = features_config()
    model = config.model.model_copy(update={"channels": 64})
    return build_engines.random("features", config.model_copy(update={"model": model}))


@pytest.fixture(scope="session")
def patches_engines(build_engines: BuildEngines) -> Bundle:
    """A random STARFlow whose flow blocks have patches of their own: 16, 8 and 4 tokens."""
    return build_engines.random("patches-of-blocks", patches_config(channels=64))


@pytest.fixture(scope="session")
def tarflow_engines(build_engines: BuildEngines) -> Bundle:
    """A random TARFlow of three classes: no prefill, a first token that passes unchanged, linear guidance."""
    return build_engines.random("tarflow", tarflow_config())


@pytest.fixture(scope="session")
def captioned_engines(
    t5_folder: Path, engine_library: EngineLibrary, made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """A random STARFlow from captions to pixels, with a T5, an autoencoder with two decoders, and both denoisers.

    Its engines and those of its networks are built in one go, for compute capabilities 8.9 and 12.0.
    """

    def fill(folder: Path) -> None:
        write_captioned_latents(folder / "checkpoint", t5_folder)
        options = ExportOptions(precisions=("fp16",), batch=2, denoisers=("score", "learned"))
        export_checkpoint(folder / "checkpoint", folder / "bundle", options)
        arguments = ["build", str(folder / "bundle"), "--target", "tensorrt-rtx:8.9,12.0", "--profile-tokens", "1,16"]
        assert main(arguments) == 0

    root = tmp_path_factory.mktemp("captioned-engines") / "bundle"
    shutil.copytree(made_once("captioned-engines", fill) / "bundle", root)
    bundle = Bundle.open(root)
    engine_library.add(bundle, *read_builds(bundle))
    engine_library.add_networks(bundle, *read_network_builds(bundle))
    return bundle


@pytest.fixture(scope="session")
def digits_engines(repository: Path, build_engines: BuildEngines) -> Bundle:
    """The digits model."""
    return build_engines("digits", repository / "examples" / "digits" / "checkpoint")


@pytest.fixture(scope="session")
def continuous_engines(build_engines: BuildEngines) -> Bundle:
    """A random velocity transformer of three classes."""
    return build_engines.random("velocity", velocity_config())


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


@pytest.fixture
def simulate_sessions(simulate: Simulate, monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """The same with sessions of ONNX Runtime's CUDA provider on the device, whose weights lie with the real session."""
    from starflow.runtime.backends.onnxruntime import cuda_backend
    from starflow.runtime.backends.onnxruntime.device_weights import DeviceWeights
    from starflow.runtime.backends.onnxruntime.session import OnDevice
    from starflow.runtime.bundle.graph_spec import GraphSpec
    from tests.simulated_device.onnxruntime_session import SimulatedSession, open_simulated

    def install(**options: Any) -> SimulatedDevice:
        device = simulate(**options)

        def open_session(
            bundle: Bundle, graph: GraphSpec, provider: str, threads: int, *, on_device: OnDevice
        ) -> SimulatedSession:
            assert provider == "cuda"
            return open_simulated(device, bundle, graph, on_device)

        monkeypatch.setattr(cuda_backend, "open_session", open_session)
        monkeypatch.setattr(DeviceWeights, "tensors", lambda self: {})
        return device

    return install
