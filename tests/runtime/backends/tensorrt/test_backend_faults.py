"""Errors of the native TensorRT loop, and what it frees then; the fixture finds memory that is left."""

import errno
import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from starflow.runtime.backends.cuda.block_runner import CapturedBlockRunner
from starflow.runtime.backends.tensorrt.backend import open_tensorrt
from starflow.runtime.bundle.build_record import FlavourName
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BackendError, BundleError, StarflowError, UsageError
from tests.simulated_device.device import Fault
from tests.simulated_device.fixtures import Simulate
from tests.simulated_device.sampling import copy_of, generate
from tests.simulated_device.tensorrt_runtime import Context

# No GPU, no driver, no package


def test_without_a_gpu_it_points_elsewhere(tiny_engines: Bundle, simulate: Simulate) -> None:
    simulate(gpus=0)
    with pytest.raises(BackendError, match=r"no usable NVIDIA GPU.*cudaErrorNoDevice.*onnxruntime backend"):
        open_tensorrt(tiny_engines)


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a driver")
def test_without_a_driver_the_real_cuda_says_the_same(tiny_engines: Bundle) -> None:
    with pytest.raises(
        BackendError, match=r"no usable NVIDIA GPU or driver \(cudaErrorInsufficientDriver: .*onnxruntime"
    ):
        open_tensorrt(tiny_engines)


def test_without_cuda_python_it_says_how_to_get_it(tiny_engines: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendError, match=r"cuda-python is not installed: pip install 'cuda-python<14'; "):
        open_tensorrt(tiny_engines)


def test_there_is_no_such_gpu(tiny_engines: Bundle, simulate: Simulate) -> None:
    simulate()
    with pytest.raises(UsageError, match="GPU 3: this machine has 1"):
        open_tensorrt(tiny_engines, device=3)


# Choosing a build


@pytest.mark.parametrize(("capability", "target"), [("12.0", "tensorrt-rtx:12.0"), ("9.0", "tensorrt")])
def test_without_engines_for_the_gpu_it_says_how_to_make_them(
    tiny_engines: Bundle, simulate: Simulate, capability: str, target: str
) -> None:
    simulate(capability=capability)
    with pytest.raises(BackendError, match=rf"capability {capability}; .*starflow build \S+ --target {target}$"):
        open_tensorrt(tiny_engines)


def test_a_variant_that_was_not_built(tiny_engines: Bundle, simulate: Simulate) -> None:
    simulate()
    with pytest.raises(BackendError, match="has no engines of cpu-fp16"):
        open_tensorrt(tiny_engines, "cpu-fp16")
    with pytest.raises(BundleError, match="no variant 'portable-int3'"):
        open_tensorrt(tiny_engines, "portable-int3")


def test_a_build_of_a_flavour_that_is_not_installed(tiny_engines: Bundle, simulate: Simulate, tmp_path: Path) -> None:
    simulate()
    bundle = copy_of(tiny_engines, tmp_path / "bundle", flavour="tensorrt")
    with pytest.raises(BackendError, match="tensorrt is not installed"):
        open_tensorrt(bundle)


def test_of_two_builds_the_installed_release_is_taken(tiny_engines: Bundle, simulate: Simulate, tmp_path: Path) -> None:
    simulate()
    bundle = copy_of(tiny_engines, tmp_path / "bundle")
    (path,) = bundle.root.glob("engines/*/*/build.json")
    old = path.parents[2] / "a-first" / "portable-fp16"
    old.mkdir(parents=True)
    (old / "build.json").write_text(json.dumps(json.loads(path.read_text()) | {"version": "1.0.0"}))
    with open_tensorrt(bundle) as backend:
        assert backend.record.version == importlib.import_module("tensorrt_rtx").__version__


# Wrong engines


def engine_file(bundle: Bundle, block: int) -> Path:
    (path,) = bundle.root.glob(f"engines/*/*/block{block}*.engine")
    return path


def test_a_truncated_engine(tiny_engines: Bundle, simulate: Simulate, tmp_path: Path) -> None:
    simulate()
    bundle = copy_of(tiny_engines, tmp_path / "bundle")
    path = engine_file(bundle, 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"block1\S*engine: has \d+ bytes, .*starflow build .*tensorrt-rtx:8.9"):
        open_tensorrt(bundle)
    path.unlink()
    with pytest.raises(BundleError, match=r"block1\S*engine: is missing; .*starflow build"):
        open_tensorrt(bundle)


def test_a_damaged_engine(tiny_engines: Bundle, simulate: Simulate, tmp_path: Path) -> None:
    simulate()
    bundle = copy_of(tiny_engines, tmp_path / "bundle")
    path = engine_file(bundle, 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"cannot load it \(.*magicTag.*starflow build .* --force"):
        open_tensorrt(bundle)


def test_an_engine_of_another_release(tiny_engines: Bundle, simulate: Simulate, tmp_path: Path) -> None:
    simulate()
    bundle = copy_of(tiny_engines, tmp_path / "bundle", version="1.0.0")
    with pytest.raises(BundleError, match=r"built by tensorrt-rtx 1\.0\.0 .* is installed; .*starflow build"):
        open_tensorrt(bundle)


def test_an_engine_of_another_graph(tiny_engines: Bundle, simulate: Simulate, tmp_path: Path) -> None:
    simulate()
    bundle = copy_of(tiny_engines, tmp_path / "bundle")
    (path,) = bundle.root.glob("engines/*/*/build.json")
    record = json.loads(path.read_text())
    files = [engine["file"] for engine in record["engines"]]
    record["engines"][0]["file"], record["engines"][1]["file"] = files[::-1]
    path.write_text(json.dumps(record))
    with pytest.raises(BundleError, match=r"tensor \S+ is (there|missing), the manifest says .*starflow build"):
        open_tensorrt(bundle)


def test_a_build_without_one_of_the_blocks(tiny_engines: Bundle, simulate: Simulate, tmp_path: Path) -> None:
    simulate()
    bundle = copy_of(tiny_engines, tmp_path / "bundle", engines=[])
    with pytest.raises(BundleError, match=r"has no engine for flow block 0; .*starflow build"):
        open_tensorrt(bundle)


def test_an_engine_outside_of_the_bundle(tiny_engines: Bundle, simulate: Simulate, tmp_path: Path) -> None:
    simulate()
    bundle = copy_of(tiny_engines, tmp_path / "bundle")
    path = engine_file(bundle, 0)
    path.rename(tmp_path / "elsewhere.engine")
    path.symlink_to(tmp_path / "elsewhere.engine")
    with pytest.raises(BundleError, match="outside the bundle's engines"):
        open_tensorrt(bundle)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"get_aliased_input_tensor": lambda self, name: None}, "the input that samples_out updates is None"),
        ({"get_tensor_dtype": lambda self, name: self._trt.DataType.FLOAT}, "position's type is DataType.FLOAT"),
        ({"get_tensor_location": lambda self, name: self._trt.TensorLocation.HOST}, "'s location is"),
        ({"get_tensor_shape": lambda self, name: (2, 3)}, r"'s shape is \(2, 3\)"),
        ({"get_tensor_profile_shape": lambda self, name, index: [(1,)] * 3}, "the range of previous in .* profile 0"),
    ],
)
def test_an_engine_that_differs_from_the_manifest(
    tiny_engines: Bundle, simulate: Simulate, monkeypatch: pytest.MonkeyPatch, changed: dict, message: str
) -> None:
    simulate()
    for name, method in changed.items():
        monkeypatch.setattr(f"tests.simulated_device.tensorrt_runtime.Engine.{name}", method)
    with pytest.raises(BundleError, match=rf"{message}.*starflow build"):
        open_tensorrt(tiny_engines)


# Too little memory


def test_wherever_memory_ends_all_of_it_is_released(tiny_engines: Bundle, simulate: Simulate) -> None:
    device = simulate()
    with open_tensorrt(tiny_engines):
        pass
    for number in range(1, device.counts["cudaMalloc"] + 1):
        device = simulate()
        device.faults["cudaMalloc", number] = Fault("cudaErrorMemoryAllocation")
        with pytest.raises(BackendError, match=r"needs [\d,]+ bytes of GPU memory, [\d,]+ of 1,073,741,824 are free"):
            open_tensorrt(tiny_engines)
        assert not device.memory.leaks()


def test_too_little_memory_for_the_weights(tiny_engines: Bundle, simulate: Simulate) -> None:
    simulate(memory=1000)
    with pytest.raises(
        BackendError, match=r"block0\S*: needs at least [\d,]+ bytes of GPU memory, 1,000 of 1,000 are free"
    ):
        open_tensorrt(tiny_engines)


def test_too_little_memory_for_a_context(
    tiny_engines: Bundle, simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate()
    monkeypatch.setattr("tests.simulated_device.tensorrt_runtime.CONTEXT_BYTES", 1 << 31)
    with pytest.raises(
        BackendError, match=r"flow block 0: TensorRT refuses to create an execution context .* are free"
    ):
        open_tensorrt(tiny_engines)


# Work that fails


@pytest.mark.parametrize("number", [1, 3, 4, 7])
def test_wherever_tensorrt_refuses_to_run_all_is_released(
    tiny_engines: Bundle, simulate: Simulate, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Runs are, for each of two blocks: a warm-up and a captured one, then two warm-ups and two captured ones of a pair of steps."""
    device = simulate()
    execute = Context.execute_async_v3
    monkeypatch.setattr(
        Context,
        "execute_async_v3",
        lambda self, stream: device.counts["execute_async_v3"] != number - 1 and execute(self, stream),
    )
    with pytest.raises(BackendError, match=rf"flow block {(number - 1) // 6}: TensorRT refuses to run"):
        open_tensorrt(tiny_engines)
    assert not device.memory.leaks()
    assert not device.streams


def test_a_failure_on_the_gpu_is_said_once(tiny_engines: Bundle, simulate: Simulate) -> None:
    device = simulate()
    backend = open_tensorrt(tiny_engines)
    with pytest.raises(BackendError, match=r"failed on GPU 0: cudaErrorIllegalAddress"), backend:
        device.broken = "cudaErrorIllegalAddress"
        generate(tiny_engines, backend)


def test_a_closed_sampler_says_so(tiny_engines: Bundle, simulate: Simulate) -> None:
    simulate()
    backend = open_tensorrt(tiny_engines)
    with backend:
        pass
    with pytest.raises(BackendError, match="was closed"):
        generate(tiny_engines, backend)


# Kernels compiled on the machine


def test_the_second_start_finds_the_kernels_of_the_first(
    tiny_engines: Bundle, simulate: Simulate, tmp_path: Path
) -> None:
    bundle = copy_of(tiny_engines, tmp_path / "bundle")
    first, second = simulate(), None
    with open_tensorrt(bundle):
        assert not list(bundle.root.rglob("*.runtime-cache"))
    assert (first.counts["kernels compiled"], first.counts["kernels found"]) == (2, 4)
    assert len(list(bundle.root.rglob("*.runtime-cache"))) == 2
    second = simulate()
    with open_tensorrt(bundle):
        assert (second.counts["kernels compiled"], second.counts["kernels found"]) == (0, 6)


@pytest.mark.parametrize("content", [b"", b"no cache", b'["Another GPU", []]'])
def test_a_cache_that_does_not_fit_is_replaced(
    tiny_engines: Bundle, simulate: Simulate, tmp_path: Path, content: bytes
) -> None:
    bundle = copy_of(tiny_engines, tmp_path / "bundle")
    cache = engine_file(bundle, 0).with_suffix(".runtime-cache")
    cache.write_bytes(content)
    device = simulate()
    with open_tensorrt(bundle):
        assert device.counts["kernels compiled"] == 2
    assert b"Simulated GPU" in cache.read_bytes()


def test_a_folder_that_cannot_be_written_keeps_nothing(
    tiny_engines: Bundle, simulate: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copy_of(tiny_engines, tmp_path / "bundle")
    simulate()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with open_tensorrt(bundle):
        pass
    assert not list(bundle.root.rglob("*.runtime-cache"))


def test_a_full_disk_is_said_after_everything_is_released(
    tiny_engines: Bundle, simulate: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    bundle = copy_of(tiny_engines, tmp_path / "bundle")
    device = simulate()
    backend = open_tensorrt(bundle)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StarflowError, match=r"runtime-cache: cannot be written \(No space left on device\)"), backend:
        pass
    assert not device.memory.leaks()


# Capturing


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_a_refused_capture_runs_without_one_and_says_so(
    flavour: FlavourName, tiny_engines: Bundle, simulate: Simulate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """RTX is asked before; the other TensorRT refuses within the capture, whose error must not stay."""
    bundle = copy_of(tiny_engines, tmp_path / "bundle", flavour=flavour)
    simulate(flavour=flavour)
    with open_tensorrt(bundle) as backend:
        expected = generate(bundle, backend)
        assert caplog.records == []
    device = simulate(flavour=flavour)
    device.capturable = False
    with open_tensorrt(bundle) as backend:
        assert backend.block_runner(0).kernels_per_step is None
        np.testing.assert_array_equal(generate(bundle, backend), expected)
    assert device.counts["cudaGraphLaunch"] == 0
    assert re.search(r"flow block 0: runs of 1 tokens cannot be captured into a CUDA graph \(.+\)", caplog.text)


def test_a_loop_that_does_not_move_on_does_not_open(
    tiny_engines: Bundle, simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ONNX Runtime's did on a GPU: every step read the first position."""
    simulate()
    monkeypatch.setattr(CapturedBlockRunner, "_capture_two_steps", lambda self: self._graph(1))
    monkeypatch.setattr(CapturedBlockRunner, "_feed_back", lambda self, count: None)
    with pytest.raises(BackendError, match="flow block 0: this engine does not move on"):
        open_tensorrt(tiny_engines)
