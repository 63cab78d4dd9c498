"""What is on this machine, found by trying: packages, execution providers, TensorRT flavours, GPUs.

Nothing here needs more than the base install, and nothing missing is an error.
"""

import importlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

from starflow.runtime.backends.cuda import device as cuda_device
from starflow.runtime.backends.cuda.driver import driver_cuda_version
from starflow.runtime.backends.tensorrt.flavour import FLAVOUR_NAMES, load_flavour
from starflow.runtime.bundle.build_record import FlavourName
from starflow.runtime.plain.errors import BackendError

DISTRIBUTION = "starflow-compiler"
CONTRIBUTORS_EXTRAS = ("dev", "docs")
CPU_PROVIDER, GPU_PROVIDERS = "CPUExecutionProvider", ("CUDAExecutionProvider", "TensorrtExecutionProvider")

# The smallest ONNX model there is, y = Identity(x), float32 [1]: a provider that loads it has its libraries and its device.
IDENTITY_MODEL = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


@dataclass(frozen=True)
class Computer:
    """The computer: processors this process may use, bytes of memory (None where the system does not say)."""

    python: str
    platform: str
    cores: int
    memory_bytes: int | None


@dataclass(frozen=True)
class Package:
    """A package that matters: its version (None: not there), and what is to be said about it."""

    name: str
    version: str | None
    note: str
    cuda: str | None = None  # the release of CUDA it was built for, such as "13.0"


@dataclass(frozen=True)
class Provider:
    """An execution provider that ONNX Runtime lists, and whether a session with it really got it."""

    name: str
    loads: bool
    problem: str | None = None  # what it lacks and what mends it, if it does not load and that can be told


@dataclass(frozen=True)
class OnnxRuntime:
    """What else matters of ONNX Runtime."""

    builds: tuple[str, ...]  # the distributions that bring the package `onnxruntime`, with their versions
    tensorrt: int | None = None  # the major release of TensorRT that its TensorRT provider is linked with
    lacks_cudnn: bool = False  # whether convolutions, as of autoencoders, will not run on CUDA


@dataclass(frozen=True)
class TensorRT:
    """A TensorRT flavour; `problem` says why it cannot be used, None that it can."""

    name: FlavourName
    version: str | None
    capabilities: tuple[str, ...]
    problem: str | None
    cuda: str | None = None  # the major release of CUDA it was built for


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU: compute capability such as "8.9", bytes of memory (None where it has none of its own)."""

    name: str
    compute_capability: str
    memory_bytes: int | None


@dataclass(frozen=True)
class Gpus:
    """The GPUs and their driver; where there are none, `problem` says how that was found."""

    found: tuple[Gpu, ...]
    driver: str | None
    problem: str | None


@dataclass(frozen=True)
class Extra:
    """An optional part of the distribution, and which of its packages are missing."""

    name: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Machine:
    """What was found on a machine."""

    machine: Computer
    packages: tuple[Package, ...]
    onnxruntime: OnnxRuntime
    providers: tuple[Provider, ...]
    tensorrt: tuple[TensorRT, ...]
    gpus: Gpus
    extras: tuple[Extra, ...]


def this_machine() -> Machine:
    """What is on this machine."""
    cuda = cuda_package()
    providers = tuple(listed_providers())
    return Machine(
        machine=this_computer(),
        packages=(onnxruntime_package(), torch_package(), cuda),
        onnxruntime=onnxruntime_details(),
        providers=providers,
        tensorrt=tuple(tensorrt_flavour(name) for name in FLAVOUR_NAMES),
        gpus=find_gpus(cuda),
        extras=tuple(optional_extras()),
    )


def this_computer() -> Computer:
    """The computer this runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory: int | None = None
    with suppress(AttributeError, OSError, ValueError):  # not a POSIX system
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Computer(platform.python_version(), platform.platform(), cores, memory)


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _distributions(package: str) -> list[str]:
    """The distributions that bring an importable package."""
    return sorted(set(packages_distributions().get(package, ())))


def onnxruntime_package() -> Package:
    """ONNX Runtime, imported, with its build."""
    builds = _distributions("onnxruntime")
    try:
        from starflow.runtime.backends.onnxruntime import onnxruntime
        from starflow.runtime.backends.onnxruntime.provider_problem import cuda_release
    except BackendError as error:
        return Package("onnxruntime", None, str(error) if builds else "not installed")
    cuda = cuda_release()
    return Package("onnxruntime", onnxruntime.__version__, f"GPU build for CUDA {cuda}" if cuda else "CPU build", cuda)


def onnxruntime_details() -> OnnxRuntime:
    """Builds of ONNX Runtime and what the installed one is linked with; to be asked after `listed_providers`, which loads libraries."""
    builds = tuple(f"{name} {version(name)}" for name in _distributions("onnxruntime"))
    try:
        from starflow.runtime.backends.onnxruntime.provider_problem import lacks_cudnn, tensorrt_major
    except BackendError:
        return OnnxRuntime(builds)
    return OnnxRuntime(builds, tensorrt_major(), lacks_cudnn())


def cuda_package() -> Package:
    """cuda-python, imported; its version is the CUDA it is for."""
    try:
        importlib.import_module("cuda.bindings.runtime")
    except ModuleNotFoundError:
        return Package("cuda-python", None, "not installed")
    except (ImportError, OSError, RuntimeError) as error:
        return Package("cuda-python", None, f"does not load: {_line(error)}")
    found = _installed("cuda-bindings") or _installed("cuda-python")
    return Package("cuda-python", found, "", found and ".".join(found.split(".")[:2]))


def torch_package() -> Package:
    """Read off torch/version.py, because PyPI's CUDA builds do not say so in their version."""
    found, spec = _installed("torch"), importlib.util.find_spec("torch")
    if found is None or spec is None or spec.origin is None:
        return Package("torch", None, "not installed")
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    cuda = re.search(r"^cuda\b[^=]*= *'([^']+)'", text, re.MULTILINE)
    return Package("torch", found, f"CUDA {cuda[1]} build" if cuda else "CPU build", cuda and cuda[1])


def listed_providers() -> Iterator[Provider]:
    """The providers bundles can run on, each tried with a session of its own."""
    try:
        from starflow.runtime.backends.onnxruntime import onnxruntime
        from starflow.runtime.backends.onnxruntime.provider_problem import load_libraries, provider_problem
    except BackendError:
        return
    onnxruntime.set_default_logger_severity(4)  # a provider that does not load complains at length
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for name in onnxruntime.get_available_providers():
        if name in (CPU_PROVIDER, *GPU_PROVIDERS):
            if name != CPU_PROVIDER:
                load_libraries(name)
            try:
                with warnings.catch_warnings(action="ignore"):
                    session = onnxruntime.InferenceSession(
                        IDENTITY_MODEL, options, providers=[name], enable_fallback=False
                    )
                loads = name in session.get_providers()  # what it did not get, it replaces by the CPU in silence
            except Exception:  # ONNX Runtime raises a dozen types for one thing: it cannot use this provider
                loads = False
            problem = None if loads or name == CPU_PROVIDER else provider_problem(name)
            yield Provider(name, loads, problem)


def tensorrt_flavour(name: FlavourName) -> TensorRT:
    """A flavour, imported."""
    try:
        flavour = load_flavour(name)
    except BackendError as error:
        return TensorRT(name, None, (), str(error))
    cuda = (re.search(r"cu(\d+)$", each) for each in _distributions(flavour.trt.__name__))
    return TensorRT(
        name, flavour.version, flavour.named_capabilities, None, next((found[1] for found in cuda if found), None)
    )


def find_gpus(cuda: Package) -> Gpus:
    """Ask the CUDA runtime, as the tensorrt backend does; without cuda-python nvidia-smi, which comes with the driver."""
    if cuda.version is None:
        return _gpus_by_tool()
    release = driver_cuda_version()
    driver = f"for CUDA {release[0]}.{release[1]}" if release else None
    try:
        first = cuda_device.Gpu()
        gpus = [cuda_device.Gpu(index) for index in range(first.call("cudaGetDeviceCount"))]
        found = tuple(Gpu(gpu.name, gpu.compute_capability, _total_memory(gpu)) for gpu in gpus)
    except BackendError as error:
        return Gpus((), driver, str(error).partition(";")[0])
    return Gpus(found, driver, None)


def _total_memory(gpu: cuda_device.Gpu) -> int:
    gpu.select()
    return gpu.memory()[1]


def _gpus_by_tool() -> Gpus:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Gpus((), None, "neither cuda-python nor nvidia-smi is there")
    query = [tool, "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Gpus((), None, "nvidia-smi does not answer")
    rows = [line.split(", ") for line in answer.stdout.splitlines() if line.count(", ") == 3]
    if answer.returncode or not rows:
        return Gpus((), None, f"nvidia-smi finds none ({_line(answer.stdout or answer.stderr)})")
    found = tuple(
        Gpu(name, capability, int(mebibytes) << 20 if mebibytes.isdigit() else None)
        for name, capability, mebibytes, _ in rows
    )
    return Gpus(found, rows[0][3], None)


def optional_extras() -> Iterator[Extra]:
    """The distribution's extras with the packages that are not installed; an extra may include another."""
    needs: dict[str, list[str]] = {}
    for line in requires(DISTRIBUTION) or ():
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?.*extra == ['\"]([\w-]+)['\"]", line)
        if match:
            package, included, extra = match.groups()
            names = [f"[{name}]" for name in included.split(",")] if package == DISTRIBUTION else [package]
            needs.setdefault(extra, []).extend(names)

    def missing(extra: str) -> Iterator[str]:
        for name in needs[extra]:
            if name.startswith("["):
                yield from missing(name.strip("[]"))
            elif _installed(name) is None:
                yield name

    for extra in needs:
        if extra not in CONTRIBUTORS_EXTRAS:
            yield Extra(extra, tuple(dict.fromkeys(missing(extra))))


def _line(what: object) -> str:
    return " ".join(str(what).split())[:160]
