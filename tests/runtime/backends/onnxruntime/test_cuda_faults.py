"""Whatever CUDA or ONNX Runtime refuses, and whenever: one line, everything released, and the process goes on."""

import re
from collections.abc import Callable
from functools import partial
from operator import eq, le
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from starflow.runtime.backends.onnxruntime import session
from starflow.runtime.backends.onnxruntime.cuda_backend import CudaBackend
from starflow.runtime.backends.onnxruntime.device_weights import DeviceWeights
from starflow.runtime.backends.onnxruntime.provider_problem import CUDA
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BackendError
from starflow.runtime.sampler import Sampler
from tests.simulated_device import onnxruntime_session
from tests.simulated_device.device import Fault
from tests.simulated_device.faults import FREEING, FUNCTIONS, assert_released, cuda_calls, lose, some_calls
from tests.simulated_device.fixtures import Simulate
from tests.simulated_device.onnxruntime_session import SimulatedBinding, SimulatedSession

VARIANT = "portable-fp32"
ONE_LINE = r"^[^\n]*{}[^\n]*$"
COUNTED: dict[Path, dict[str, int]] = {}  # what `calls` has found


@pytest.fixture(scope="module", params=["tiny_bundle", "continuous_bundle"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """A flow whose steps are captured, and one whose passes are."""
    return Bundle.open(request.getfixturevalue(request.param))


def opened(bundle: Bundle) -> CudaBackend:
    return CudaBackend(bundle, bundle.variant(VARIANT, "portable"))


def sample(bundle: Bundle, backend: CudaBackend | None = None) -> NDArray:
    """Open sessions, sample, close."""
    with Sampler(bundle, bundle.variant(VARIANT, "portable"), backend or opened(bundle)) as sampler:
        return sampler.generate(sampler.noise(2, seed=5), np.array([0, 1]), guidance=1.5)


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> NDArray:
    """The sample of the CPU."""
    with Sampler.open(bundle.root, variant=VARIANT, threads=1) as sampler:
        return sampler.generate(sampler.noise(2, seed=5), np.array([0, 1]), guidance=1.5)


def calls(bundle: Bundle, simulate: Simulate) -> dict[str, int]:
    """How often each function of CUDA is called until the backend is closed; the same each time."""
    if bundle.root in COUNTED:
        return COUNTED[bundle.root]
    device, counts = simulate(), dict[str, int]()

    class Counted(CudaBackend):
        def close(self) -> None:
            counts.update(cuda_calls(device))
            super().close()

    sample(bundle, Counted(bundle, bundle.variant(VARIANT, "portable")))
    return COUNTED.setdefault(bundle.root, counts)


def test_no_function_is_left_out(bundle: Bundle, simulate_sessions: Simulate) -> None:
    assert calls(bundle, simulate_sessions).keys() - FREEING == set(FUNCTIONS)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_wherever_a_call_fails_all_is_released_and_the_next_sampler_works(
    bundle: Bundle, simulate_sessions: Simulate, expected: NDArray, function: str
) -> None:
    for number in some_calls(function, calls(bundle, simulate_sessions)[function]):
        device = simulate_sessions()
        device.faults[function, number] = Fault("cudaErrorUnknown")
        if function == "cudaStreamEndCapture":  # a capture that is refused is done without
            np.testing.assert_array_equal(sample(bundle), expected)
        else:
            with pytest.raises(BackendError, match=ONE_LINE.format("cudaErrorUnknown")):
                sample(bundle)
        assert_released(device)
    np.testing.assert_array_equal(sample(bundle), expected)


# Too little memory


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("cudaMalloc", r"needs [\d,]+ bytes of GPU memory, [\d,]+ of [\d,]+ are free"),
        ("cudaMallocHost", r"needs [\d,]+ bytes of pinned host memory, .*ulimit -l"),
    ],
)
def test_wherever_memory_ends_all_of_it_is_released(
    bundle: Bundle, simulate_sessions: Simulate, expected: NDArray, function: str, said: str
) -> None:
    for number in range(1, calls(bundle, simulate_sessions)[function] + 1):
        device = simulate_sessions()
        device.faults[function, number] = Fault("cudaErrorMemoryAllocation")
        with pytest.raises(BackendError, match=ONE_LINE.format(rf"\S+ of flow block \d {said}")):
            sample(bundle)
        assert_released(device)
    np.testing.assert_array_equal(sample(bundle), expected)


def test_wherever_a_session_finds_no_memory_all_is_released(
    bundle: Bundle, simulate_sessions: Simulate, monkeypatch: pytest.MonkeyPatch, expected: NDArray
) -> None:
    """ONNX Runtime allocates in the first run of a session."""
    allocate = SimulatedSession._allocate
    sessions = 0

    def counted(self: SimulatedSession) -> None:
        nonlocal sessions
        sessions += 1
        if sessions == failing:
            monkeypatch.setattr(onnxruntime_session, "ARENA_BYTES", 1 << 31)
        allocate(self)

    monkeypatch.setattr(SimulatedSession, "_allocate", counted)
    failing = 0
    simulate_sessions()
    sample(bundle)
    for failing in range(1, sessions + 1):  # noqa: B007, `counted` reads it
        monkeypatch.setattr(onnxruntime_session, "ARENA_BYTES", 4096)
        sessions, device = 0, simulate_sessions()
        said = r"\.onnx: ONNX Runtime cannot run it \(Failed to allocate memory for requested buffer of size \d+\)"
        with pytest.raises(BackendError, match=ONE_LINE.format(said)):
            sample(bundle)
        assert_released(device)
    monkeypatch.setattr(onnxruntime_session, "ARENA_BYTES", 4096)
    np.testing.assert_array_equal(sample(bundle), expected)


def test_too_little_memory_for_the_weights(
    bundle: Bundle, simulate_sessions: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in the file memory ends; here the CPU build gives the reason."""
    load = DeviceWeights.tensors
    device = simulate_sessions()
    monkeypatch.setattr(DeviceWeights, "tensors", load)
    said = r"fp32\.safetensors: needs [\d,]+ bytes of GPU memory, [\d,]+ of 1,073,741,824 are left \(.+\); free"
    with pytest.raises(BackendError, match=ONE_LINE.format(said)):
        sample(bundle)
    assert_released(device)


# Runs that fail


def test_wherever_a_run_fails_all_is_released(
    bundle: Bundle, simulate_sessions: Simulate, monkeypatch: pytest.MonkeyPatch, expected: NDArray
) -> None:
    """A run that fails while it is captured is a capture that is refused, and one that fails again is an error."""
    run = SimulatedSession.run_with_iobinding
    failing: Callable[[int], bool] = partial(eq, 0)  # the number of a run

    def checked(self: SimulatedSession, io: SimulatedBinding, options: onnxruntime.RunOptions) -> None:
        if failing(self._device.counts["run_with_iobinding"] + 1):
            self._device.counts["run_with_iobinding"] += 1
            raise RuntimeError("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED\nin another line")
        run(self, io, options)

    monkeypatch.setattr(SimulatedSession, "run_with_iobinding", checked)
    device = simulate_sessions()
    sample(bundle)
    said = r"ONNX Runtime cannot run it \(CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED\)"
    refused = 0
    for number in range(1, device.counts["run_with_iobinding"] + 1):
        device = simulate_sessions()
        failing = partial(eq, number)
        try:
            np.testing.assert_array_equal(sample(bundle), expected)
            refused = number
        except BackendError as error:
            assert re.fullmatch(rf"[^\n]*{said}[^\n]*", str(error))
        assert_released(device)
    device = simulate_sessions()
    failing = partial(le, refused)
    with pytest.raises(BackendError, match=ONE_LINE.format(said)):
        sample(bundle)
    assert_released(device)


# A device that is lost


@pytest.mark.parametrize("function", ["cudaGraphLaunch", "cudaStreamSynchronize", "cudaMemcpyAsync", "cudaSetDevice"])
@pytest.mark.parametrize("number", [1, 4])
def test_a_device_lost_in_a_sequence_is_one_line(
    bundle: Bundle, simulate_sessions: Simulate, function: str, number: int
) -> None:
    device = simulate_sessions()
    backend = opened(bundle)
    (backend.block_runner(0) if bundle.manifest.family_name == "autoregressive" else backend.continuous_runner())
    lose(device, function, number)
    with pytest.raises(BackendError, match=ONE_LINE.format("cudaErrorLaunchFailure")):
        sample(bundle, backend)
    del backend
    device.last_error = None  # of a device that is lost, it stays
    assert_released(device)


def test_after_the_device_is_lost_the_process_samples_on_the_cpu(
    bundle: Bundle, simulate_sessions: Simulate, expected: NDArray
) -> None:
    device = simulate_sessions()
    variant = bundle.variant(VARIANT, "portable")
    with Sampler(bundle, variant, opened(bundle)) as first, Sampler(bundle, variant, opened(bundle)) as second:
        first.sample([0, 1])
        lose(device, "cudaGraphLaunch", 3)
        for sampler in (first, second, first):
            with pytest.raises(BackendError, match="cudaErrorLaunchFailure"):
                sampler.sample([0, 1])
    device.last_error = None
    assert_released(device)
    with pytest.raises(BackendError, match=r"no usable NVIDIA GPU or driver \(cudaErrorLaunchFailure"):
        opened(bundle)
    with Sampler.open(bundle.root, variant=VARIANT, threads=1) as sampler:
        np.testing.assert_array_equal(sampler.generate(sampler.noise(2, seed=5), [0, 1], guidance=1.5), expected)


# What is missing


def test_without_a_gpu_it_points_elsewhere(bundle: Bundle, simulate_sessions: Simulate) -> None:
    simulate_sessions(gpus=0)
    with pytest.raises(BackendError, match=r"no usable NVIDIA GPU.*cudaErrorNoDevice.*onnxruntime backend on the CPU"):
        opened(bundle)


def test_a_missing_library_of_the_provider_is_one_line(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a session is opened, which would only say that it fell back."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, session.CPU])
    monkeypatch.setattr(session, "load_libraries", lambda provider: None)
    monkeypatch.setattr(session, "provider_problem", lambda provider: "libcudart.so.13 is missing: pip install it")
    with pytest.raises(BackendError, match=f"^{CUDA} does not work here: libcudart.so.13 is missing: pip install it$"):
        Sampler.open(tiny_bundle, provider="cuda")
