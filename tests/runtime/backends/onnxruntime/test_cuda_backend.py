"""ONNX Runtime on CUDA: the loop of captured graphs, on a simulated device whose sessions run on the CPU."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.runtime.backends.block_runner import BlockRunner
from starflow.runtime.backends.choice import open_backend
from starflow.runtime.backends.cuda.continuous_runner import CapturedContinuousRunner
from starflow.runtime.backends.onnxruntime.cuda_backend import CudaBackend
from starflow.runtime.backends.onnxruntime.device_weights import DeviceWeights
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BackendError, UsageError
from starflow.runtime.plans.integration_plan import AdaptiveSteps, integration_plan
from starflow.runtime.sampler import Plan
from tests.models import class_config, features_config, write_checkpoint
from tests.simulated_device.device import SimulatedDevice
from tests.simulated_device.fixtures import Simulate

VARIANTS = ("portable-fp32", "cuda-fp32")
PLANS: list[Plan] = [integration_plan("euler", 5), integration_plan("rk4", 3), AdaptiveSteps(tolerance=1e-2)]


@pytest.fixture
def device(simulate_sessions: Simulate) -> SimulatedDevice:
    """A GPU on which ONNX Runtime's sessions run."""
    return simulate_sessions()


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random STARFlow conditioned by a class token, with three layers of two heads."""
    return _exported(tmp_path_factory.mktemp("classes"), class_config(channels=64))


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same, conditioned by three tokens of features, which one run writes into the caches."""
    config = features_config()
    model = config.model.model_copy(update={"channels": 64})
    return _exported(tmp_path_factory.mktemp("features"), config.model_copy(update={"model": model}))


@pytest.fixture
def velocity(continuous_bundle: Path) -> Bundle:
    """A random velocity transformer of three classes."""
    return Bundle.open(continuous_bundle)


def _exported(folder: Path, config: Any) -> Bundle:
    write_checkpoint(folder / "checkpoint", config)
    options = ExportOptions(precisions=("fp32", "fp16"), lowerings=("portable", "cpu", "cuda"), batch=(1, 2))
    export_checkpoint(folder / "checkpoint", folder / "bundle", options)
    return Bundle.open(folder / "bundle")


def _sampled(bundle: Bundle, variant: str, backend: Any = None, plan: Plan = "sequential") -> NDArray:
    opened = backend or open_backend(bundle, "onnxruntime", variant=variant, provider="cpu", threads=1)[1]
    given, condition, null = bundle.manifest.conditioning, np.array([0, 1, 2]), None
    if given.kind == "features":
        draw = np.random.default_rng(0).standard_normal((4, given.tokens, given.width), np.float32)
        condition, null = draw[:3], draw[3:]
    with Sampler(bundle, bundle.variant(variant, ""), opened, plan) as sampler:
        return sampler.generate(sampler.noise(3, seed=5), condition, null, guidance=1.5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["classes", "features"])
def test_captured_steps_make_the_cpus_samples(
    device: SimulatedDevice, request: pytest.FixtureRequest, kind: str, variant: str
) -> None:
    bundle = request.getfixturevalue(kind)
    expected = _sampled(bundle, variant)
    found = _sampled(bundle, variant, CudaBackend(bundle, bundle.variant(variant, "")))
    np.testing.assert_array_equal(found, expected)
    assert device.counts["cudaGraphLaunch"] > 0


@pytest.mark.parametrize("kind", ["classes", "features"])
def test_the_cuda_lowering_agrees_with_the_cpus(request: pytest.FixtureRequest, kind: str) -> None:
    bundle = request.getfixturevalue(kind)
    np.testing.assert_allclose(_sampled(bundle, "cuda-fp32"), _sampled(bundle, "cpu-fp32"), rtol=0, atol=2e-5)


def test_twins_share_weights_and_no_buffers(
    device: SimulatedDevice, classes: Bundle, velocity: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[DeviceWeights] = []

    def tensors(self: DeviceWeights) -> dict:
        asked.append(self)
        return {}

    monkeypatch.setattr(DeviceWeights, "tensors", tensors)
    for bundle, variant, plan in ((classes, "cuda-fp32", "sequential"), (velocity, "portable-fp32", PLANS[0])):
        first = CudaBackend(bundle, bundle.variant(variant, ""))
        second = first.twin()
        expected = _sampled(bundle, variant, plan=plan)
        np.testing.assert_array_equal(_sampled(bundle, variant, first, plan), expected)  # closes the first
        np.testing.assert_array_equal(_sampled(bundle, variant, second, plan), expected)
        assert len(asked) >= 2 and len(set(asked)) == 1, "sessions of both read the same weights"
        asked.clear()


@pytest.mark.parametrize("kind", ["classes", "velocity"])
def test_twins_in_two_threads_do_not_disturb_each_other(
    device: SimulatedDevice, request: pytest.FixtureRequest, kind: str
) -> None:
    bundle: Bundle = request.getfixturevalue(kind)
    plan: Plan = "sequential" if kind == "classes" else PLANS[0]
    first = CudaBackend(bundle, bundle.variant("portable-fp32", ""))
    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(_sampled, bundle, "portable-fp32", backend, plan) for backend in (first, first.twin())]
    expected = _sampled(bundle, "portable-fp32", plan=plan)
    for each in found:
        np.testing.assert_array_equal(each.result(), expected)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_captured_passes_make_the_cpus_samples(device: SimulatedDevice, velocity: Bundle, plan: Plan) -> None:
    backend = CudaBackend(velocity, velocity.variant("portable-fp32", ""))
    found = _sampled(velocity, "portable-fp32", backend, plan)
    np.testing.assert_array_equal(found, _sampled(velocity, "portable-fp32", plan=plan))


def test_a_pass_is_a_replay_and_nothing_waits_between_passes(device: SimulatedDevice, velocity: Bundle) -> None:
    with CudaBackend(velocity, velocity.variant("portable-fp32", "")) as backend:
        runner = backend.continuous_runner()
        runner.start(np.zeros((2, 1, 8, 8), np.float32))
        runner.load(np.tile([0.5, 0.1, 0.1, 1.0], (40, 1)))
        before = device.counts.copy()
        runner.advance(40)
        assert device.counts - before == {"cudaSetDevice": 1, "cudaGraphLaunch": 40}
        assert runner.fetch("pass") == [40]


def test_passes_that_do_not_follow_each_other_are_refused(
    device: SimulatedDevice, velocity: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CapturedContinuousRunner, "_feed_back", lambda self: None)
    with (
        pytest.raises(BackendError, match="flow block 0: after 2 passes, this engine is at pass 0"),
        CudaBackend(velocity, velocity.variant("portable-fp32", "")) as backend,
    ):
        backend.continuous_runner()


@pytest.mark.parametrize("kind", ["classes", "velocity"])
def test_a_refused_capture_enqueues_every_run_and_says_so(
    device: SimulatedDevice, request: pytest.FixtureRequest, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    bundle: Bundle = request.getfixturevalue(kind)
    device.capturable = False
    with caplog.at_level(logging.WARNING):
        found = _sampled(bundle, "portable-fp32", CudaBackend(bundle, bundle.variant("portable-fp32", "")), "auto")
    np.testing.assert_array_equal(found, _sampled(bundle, "portable-fp32", plan="auto"))
    assert device.counts["cudaGraphLaunch"] == 0
    assert "cannot be captured into a CUDA graph (CUDA failure 900" in caplog.text


def test_an_input_on_the_host_is_refused(
    device: SimulatedDevice, classes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from tests.simulated_device.onnxruntime_session import SimulatedSession

    def infos(self: SimulatedSession) -> list[Any]:
        return [SimpleNamespace(name="Cpu" if v.name == "position" else "Cuda") for v in self.get_inputs()]

    monkeypatch.setattr(SimulatedSession, "get_input_memory_infos", infos)
    with (
        pytest.raises(BackendError, match="ONNX Runtime reads position on the host"),
        CudaBackend(classes, classes.variant("cuda-fp32", "")) as backend,
    ):
        backend.block_runner(0)


def test_steps_go_to_the_right_positions(
    device: SimulatedDevice, classes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop whose two steps do not feed each other is caught when the backend opens."""
    from starflow.runtime.backends.cuda.block_runner import CapturedBlockRunner

    monkeypatch.setattr(CapturedBlockRunner, "_capture_two_steps", lambda self: self._graph(1))
    monkeypatch.setattr(CapturedBlockRunner, "_feed_back", lambda self, count: None)
    with (
        pytest.raises(BackendError, match="does not move on from one step to the next"),
        CudaBackend(classes, classes.variant("cuda-fp32", "")) as backend,
    ):
        runner: BlockRunner = backend.block_runner(0)
        assert runner


def test_providers_refuse_what_they_lack(classes: Bundle) -> None:
    with pytest.raises(UsageError, match="cuda-fp16 does not run on provider cpu, which needs a cpu variant"):
        open_backend(classes, "onnxruntime", variant="cuda-fp16", provider="cpu", threads=1)


def test_the_cuda_lowering_refuses_a_plan(classes: Bundle) -> None:
    from starflow.runtime import Jacobi

    with pytest.raises(UsageError, match="variant cuda-fp32 decodes token by token; for a plan take a cpu or portable"):
        Sampler.open(classes, variant="cuda-fp32", plan=Jacobi(chunk=4))
