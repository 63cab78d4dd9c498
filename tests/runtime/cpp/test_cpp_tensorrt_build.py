"""C++ against NVIDIA's headers and the real TensorRT RTX, where there are headers: as far as a machine without a driver goes."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from ctypes import CDLL
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from starflow.runtime.backends.cuda.device import Gpu
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BackendError
from tests.cpp_library import REPOSITORY, SKIPPED, CppError, CppSampler, environment, load

SOURCES = ("backends/tensorrt/nvidia.cpp", "plain/error.cpp", "plain/mapped_file.cpp")


def build_tensorrt(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`make cpp-tensorrt`."""
    command: list[str | Path] = ["/bin/sh", REPOSITORY / "runtime/cpp/build_tensorrt.sh", folder]
    chosen = {**environment(), "PYTHON": sys.executable, **variables}
    return subprocess.run(command, env=chosen, capture_output=True, text=True)


def test_missing_headers_are_said(tmp_path: Path) -> None:
    if any(Path(root, "include/NvInferRuntime.h").exists() for root in ("/usr/local/tensorrt", "/usr")):
        pytest.skip("this system has TensorRT's headers")
    built = build_tensorrt(tmp_path, TENSORRT_ROOT="/nowhere")
    assert (built.returncode, built.stderr) == (SKIPPED, "")
    assert built.stdout.startswith("C++ with TensorRT skipped: TENSORRT_ROOT names no folder with include/NvInfer")


@pytest.fixture(scope="module")
def tensorrt_folder(cpp_folder: Path) -> Path:
    """The folder of the library that was built with TensorRT."""
    built = build_tensorrt(cpp_folder.parent)
    if built.returncode == SKIPPED:
        pytest.skip(built.stdout.strip().splitlines()[-1])
    assert built.returncode == 0, built.stdout + built.stderr
    return cpp_folder.parent / "tensorrt"


@pytest.fixture
def no_gpu() -> None:
    try:
        Gpu()
    except BackendError:
        return
    pytest.skip("this machine has a GPU")


@pytest.mark.usefixtures("no_gpu")
def test_a_machine_without_a_driver_is_told_so(tensorrt_folder: Path, tiny_engines: Bundle) -> None:
    @cache
    def with_tensorrt() -> CDLL:
        return load(str(tensorrt_folder / "libstarflow.so"))

    class Sampler(CppSampler):
        library = staticmethod(with_tensorrt)

    with pytest.raises(CppError) as refused:
        Sampler(tiny_engines.root, (1, 8, 8), backend="tensorrt")
    assert refused.value.status == 3
    assert re.fullmatch(r"no usable NVIDIA GPU or driver \(.+\); use the onnxruntime backend", str(refused.value))
    with Sampler(tiny_engines.root, (1, 8, 8), threads=1) as sampler:  # `auto` runs what works here
        assert np.isfinite(sampler.generate(sampler.noise(2, 0), np.array([0, 1]))).all()


@pytest.fixture(scope="module")
def deserialise(tensorrt_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A program that loads an engine with TensorRT RTX and prints what that says."""
    program = tmp_path_factory.mktemp("deserialise") / "deserialise"
    cache = (tensorrt_folder / "CMakeCache.txt").read_text()
    found = dict(
        re.findall(r"^(TENSORRT_INCLUDE_DIR|CUDA_INCLUDE_DIR|STARFLOW_TENSORRT_LIBRARY):\w+=(.+)$", cache, re.M)
    )
    source = REPOSITORY / "runtime/cpp/src"
    command: list[str | Path] = [os.environ.get("CXX", "c++"), "-std=c++17", "-w", '-DTENSORRT_LIBRARY=""']
    command += [f"-I{folder}" for folder in (source, source.parent / "include")]
    command += [f"-I{found[name]}" for name in ("TENSORRT_INCLUDE_DIR", "CUDA_INCLUDE_DIR")]
    command += [
        Path(__file__).with_name("deserialise.cpp"),
        *(source / name for name in SOURCES),
        "-o",
        program,
        "-ldl",
    ]
    subprocess.run(command, check=True, env=environment())

    def run(engine: Path, flavour: str = "tensorrt-rtx", library: str = found["STARFLOW_TENSORRT_LIBRARY"]) -> str:
        done = subprocess.run([program, flavour, library, engine], capture_output=True, text=True)
        assert done.stdout.count("\n") == 1
        return done.stdout.strip()

    return run


@pytest.mark.usefixtures("no_gpu")
def test_the_real_runtime_says_what_is_missing(
    deserialise: Callable[..., str], tiny_engines: Bundle, tmp_path: Path
) -> None:
    import tensorrt_rtx

    engine = next(tiny_engines.root.rglob("*.engine"))
    said = deserialise(engine)
    assert said.startswith(f"{tensorrt_rtx.__version__}: ")
    assert "CUDA driver version is insufficient" in said and "/_src" not in said
    (tmp_path / "damaged.engine").write_bytes(b"x" * 1000)
    assert "Serialization assertion" in deserialise(tmp_path / "damaged.engine")
    assert "cannot be loaded (/nowhere.so" in deserialise(engine, "tensorrt", "/nowhere.so")
    assert "has no getInferLibMajorVersion" in deserialise(engine, "tensorrt", "libm.so.6")
