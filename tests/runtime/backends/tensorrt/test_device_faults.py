"""Whatever CUDA refuses, and whenever: one line, everything released, and the process goes on."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.runtime.backends.cuda import driver
from starflow.runtime.backends.tensorrt.backend import open_tensorrt
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BackendError
from starflow.runtime.sampler import Sampler
from tests.fake_driver import make_driver
from tests.simulated_device.device import Fault
from tests.simulated_device.faults import FREEING, FUNCTIONS, assert_released, cuda_calls, lose, some_calls
from tests.simulated_device.fixtures import Simulate
from tests.simulated_device.sampling import generate

FOUND: dict[Path, tuple[NDArray, dict[str, int]]] = {}  # by `without_fault`


def sample(bundle: Bundle) -> NDArray:
    """Open the engines, sample, close."""
    with open_tensorrt(bundle) as backend:
        return generate(bundle, backend)


def without_fault(bundle: Bundle, simulate: Simulate) -> tuple[NDArray, dict[str, int]]:
    """The sample where nothing fails, and how often each function of CUDA is called meanwhile; the same each time."""
    if bundle.root not in FOUND:
        device = simulate()
        FOUND[bundle.root] = sample(bundle), cuda_calls(device)
    return FOUND[bundle.root]


def test_no_function_is_left_out(tiny_engines: Bundle, simulate: Simulate) -> None:
    _, counts = without_fault(tiny_engines, simulate)
    assert counts.keys() - FREEING == set(FUNCTIONS)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_wherever_a_call_fails_all_is_released_and_the_next_sampler_works(
    tiny_engines: Bundle, simulate: Simulate, function: str
) -> None:
    expected, counts = without_fault(tiny_engines, simulate)
    for number in some_calls(function, counts[function]):
        device = simulate()
        device.faults[function, number] = Fault("cudaErrorUnknown")
        if function == "cudaStreamEndCapture":  # a capture that is refused is done without
            np.testing.assert_array_equal(sample(tiny_engines), expected)
        else:
            with pytest.raises(BackendError, match=r"^[^\n]*cudaErrorUnknown[^\n]*$"):
                sample(tiny_engines)
        assert_released(device)
        np.testing.assert_array_equal(sample(tiny_engines), expected)


def test_wherever_pinned_memory_ends_all_of_it_is_released(tiny_engines: Bundle, simulate: Simulate) -> None:
    _, counts = without_fault(tiny_engines, simulate)
    for number in range(1, counts["cudaMallocHost"] + 1):
        device = simulate()
        device.faults["cudaMallocHost", number] = Fault("cudaErrorMemoryAllocation")
        with pytest.raises(
            BackendError, match=r"\S+ of flow block \d needs [\d,]+ bytes of pinned host memory, .*ulimit -l"
        ):
            sample(tiny_engines)
        assert_released(device)


# A device that is lost


@pytest.mark.parametrize("function", ["cudaGraphLaunch", "cudaStreamSynchronize", "cudaMemcpyAsync", "cudaSetDevice"])
@pytest.mark.parametrize("number", [1, 4])
def test_a_device_lost_in_a_sequence_is_one_line(
    tiny_engines: Bundle, simulate: Simulate, function: str, number: int
) -> None:
    device = simulate()
    backend = open_tensorrt(tiny_engines)
    lose(device, function, number)
    with pytest.raises(BackendError, match=r"^\w+ failed on GPU 0: cudaErrorLaunchFailure: [^\n]+$"), backend:
        generate(tiny_engines, backend)
    del backend
    device.last_error = None  # of a device that is lost, it stays
    assert_released(device)


def test_after_the_device_is_lost_the_process_samples_on_the_cpu(tiny_engines: Bundle, simulate: Simulate) -> None:
    """An error of this kind lasts as long as the process; the samplers that are open then end, and new ones run elsewhere."""
    device = simulate()
    first, second = Sampler.open(tiny_engines), Sampler.open(tiny_engines)
    lose(device, "cudaGraphLaunch", 3)
    for sampler in (first, second, first):
        with pytest.raises(BackendError, match="cudaErrorLaunchFailure"):
            sampler.sample([0, 1])
    first.close()
    second.close()
    device.last_error = None
    assert_released(device)
    with pytest.raises(BackendError, match=r"no usable NVIDIA GPU or driver \(cudaErrorLaunchFailure"):
        Sampler.open(tiny_engines, backend="tensorrt")
    with Sampler.open(tiny_engines, threads=1) as sampler:
        assert sampler.backend.name == "onnxruntime cpu"
        assert sampler.sample([0, 1]).shape[0] == 2


# A driver that is too old


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a driver")
def test_the_real_cuda_and_an_old_driver(tmp_path: Path) -> None:
    """The real cuda-python refuses it, and says only that it is "insufficient"."""
    make_driver(tmp_path, (12, 4))
    code = "from starflow.runtime.backends.cuda.device import Gpu\ntry:\n    Gpu()\nexcept Exception as error:\n    print(error)"
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert (
        "the NVIDIA driver is for CUDA 12.4, which is too old for CUDA 13: "
        "update it to 580 or newer, or pip install 'cuda-python<13'" in done.stdout
    )


@pytest.mark.parametrize(
    ("cuda", "package", "release", "said"),
    [
        ((13, 0), "onnxruntime", "13.0", None),
        ((13, 0), "cuda-python", "13.4", None),  # of the same major release, so it serves
        ((14, 1), "tensorrt", "13", None),
        ((12, 9), "torch", "12.8", None),
        (
            (12, 9),
            "onnxruntime",
            "13.0",
            "update it to 580 or newer, or pip install 'onnxruntime-gpu[cuda,cudnn]<1.27'",
        ),
        ((11, 8), "onnxruntime", "13.0", "which is too old for CUDA 13: update it to 580 or newer"),
        ((12, 9), "tensorrt-rtx", "13", "or pip install tensorrt-rtx-cu12 in place of tensorrt-rtx-cu13"),
    ],
)
def test_a_driver_serves_its_own_cuda_and_older_ones(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cuda: tuple[int, int],
    package: str,
    release: str,
    said: str | None,
) -> None:
    monkeypatch.setattr(driver, "DRIVER_LIBRARY", str(make_driver(tmp_path, cuda, "libfake.so.1")))
    found = driver.too_old_driver(package, release)
    assert found is None if said is None else found is not None and found.endswith(said)


def test_without_a_driver_none_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "DRIVER_LIBRARY", "libno-such-driver.so.1")
    assert driver.driver_cuda_version() is None
    assert driver.too_old_driver("onnxruntime", "13.0") is None


def test_tensorrt_that_does_not_start_is_one_line(
    tiny_engines: Bundle, simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pybind11 raises TypeError where the library gives no object."""

    def none(self: object, logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    simulate()
    monkeypatch.setattr("tests.simulated_device.tensorrt_runtime.Runtime.__init__", none)
    with pytest.raises(
        BackendError, match=r"tensorrt-rtx \S+ does not start here \(.*`starflow doctor` says what to change"
    ):
        open_tensorrt(tiny_engines)
