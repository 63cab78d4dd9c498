"""ONNX Runtime on other providers: what can be shown without a GPU.

The runner for devices does not know which memory its OrtValues are in, so here they are in the CPU's.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from starflow.runtime import Jacobi, Sampler
from starflow.runtime.backends.base import Provider
from starflow.runtime.backends.block_runner import BlockRunner
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.backends.onnxruntime.block_runner import DeviceBlockRunner
from starflow.runtime.backends.onnxruntime.provider_problem import CUDA
from starflow.runtime.backends.onnxruntime.session import CPU, check_provider, open_session
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import BackendError


class DeviceBackendOnCpu(OnnxRuntimeBackend):
    def open_block(self, graph: GraphSpec, block: Block, max_chunk: int) -> BlockRunner:
        return DeviceBlockRunner(open_session(self._bundle, graph, "cpu", 1), graph, block, max_chunk, device="cpu")


@pytest.mark.parametrize("variant", ["portable-fp32", "portable-fp16"])
@pytest.mark.parametrize("plan", ["sequential", Jacobi(chunk=5)])
def test_the_device_runner_makes_the_same_samples(tiny_bundle: Path, variant: str, plan) -> None:
    bundle = Bundle.open(tiny_bundle)
    chosen = bundle.variant(variant, "portable")
    with Sampler.open(tiny_bundle, variant=variant, plan=plan, threads=1) as host:
        noise = host.noise(3, seed=5)
        expected = host.generate(noise, [1, 2, 3], guidance=1.5)
    with Sampler(bundle, chosen, DeviceBackendOnCpu(bundle, chosen), plan) as device:
        for _ in range(2):  # the second time on buffers that are not fresh
            np.testing.assert_array_equal(device.generate(noise, [1, 2, 3], guidance=1.5), expected)


class RunnerThatStandsStill(DeviceBlockRunner):
    """The fault of a position in memory that the session does not read: every step runs at the first position."""

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.run(1)


def test_steps_that_do_not_move_on_are_refused(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    graph = bundle.variant("portable-fp32", "portable").graphs[0]
    block = bundle.autoregressive.blocks[graph.block]
    with pytest.raises(BackendError, match="does not move on from one step to the next"):
        session = open_session(bundle, graph, "cpu", 1)
        RunnerThatStandsStill(session, graph, block, bundle.autoregressive.max_chunk, device="cpu")


def test_a_provider_this_build_lacks_is_refused(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendError, match=r"has no CUDAExecutionProvider; .*onnxruntime-gpu"):
        check_provider("cuda")
    assert main(["sample", str(tiny_bundle), "--provider", "cuda"]) == 1
    assert "onnxruntime-gpu" in capsys.readouterr().err
    assert main(["sample", str(tiny_bundle), "--provider", "directml"]) == 2


def test_a_silent_fallback_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu lists its providers on every machine, and without a GPU opens a CPU session without an error."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider", CUDA, CPU])
    with (
        pytest.raises(BackendError, match="fell back from TensorrtExecutionProvider to CPUExecutionProvider"),
        Sampler.open(tiny_bundle, provider="tensorrt") as sampler,
    ):
        sampler.sample([1])


def test_cuda_needs_a_gpu(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    with pytest.raises(BackendError, match="no usable NVIDIA GPU or driver"):
        Sampler.open(tiny_bundle, provider="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_providers_agree_with_the_cpu(tiny_bundle: Path, provider: Provider) -> None:
    try:
        check_provider(provider)
    except BackendError as error:
        pytest.skip(str(error))
    with Sampler.open(tiny_bundle, variant="portable-fp32", threads=1) as cpu:
        noise = cpu.noise(2)
        expected = cpu.generate(noise, [1, 2], guidance=1.5)
    with Sampler.open(tiny_bundle, variant="portable-fp32", provider=provider) as gpu:
        np.testing.assert_allclose(gpu.generate(noise, [1, 2], guidance=1.5), expected, atol=1e-3)
