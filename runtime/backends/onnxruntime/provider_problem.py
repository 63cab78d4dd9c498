"""Why an execution provider of ONNX Runtime does not work here, and what mends it. ONNX Runtime says so in its log alone."""

import importlib
import io
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path

import onnxruntime

from starflow.runtime.backends.cuda.driver import DRIVER_LIBRARY, too_old_driver
from starflow.runtime.backends.onnxruntime.shared_libraries import missing_libraries, needed_libraries

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDER_LIBRARIES = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT: "libonnxruntime_providers_tensorrt.so"}
CUDNN = "libcudnn.so.9"  # the CUDA provider loads it by name, once an operator needs it
TENSORRT_LIBRARY = re.compile(r"lib(?:nvinfer|nvonnxparser)\w*\.so\.(\d+)")
INSTALL_LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]'"


def load_libraries(provider: str) -> None:
    """Load the libraries of a provider from where pip put them, which need not be on the loader's path."""
    with redirect_stdout(
        io.StringIO()
    ):  # it prints what it does not find; `provider_problem` says whether that matters
        onnxruntime.preload_dlls()
    if provider == TENSORRT:
        with suppress(ImportError, OSError):
            importlib.import_module("tensorrt")


def cuda_release() -> str | None:
    """The release of CUDA that the installed ONNX Runtime was built for, such as "13.0"; None of the CPU build."""
    return getattr(onnxruntime, "cuda_version", None) or None


def tensorrt_major() -> int | None:
    """The major release of TensorRT that the TensorRT provider is linked with; None if this build has no such provider."""
    names = _needed(TENSORRT)
    return next((int(match[1]) for name in names if (match := TENSORRT_LIBRARY.fullmatch(name))), None)


def lacks_cudnn() -> bool:
    """Whether this build can use cuDNN and does not find it: convolutions, as of autoencoders, will fail on CUDA."""
    return bool(_needed(CUDA)) and bool(missing_libraries([CUDNN]))


def provider_problem(provider: str) -> str | None:
    """What a provider lacks, with the commands that mend it; None if nothing is found. Call `load_libraries` first."""
    release = cuda_release()
    if release and (old := too_old_driver("onnxruntime", release)):
        return old  # first of all: it decides which libraries are the right ones
    needed = _needed(provider)
    if provider == TENSORRT:
        needed += _needed(CUDA)  # which runs what TensorRT does not
    missing = missing_libraries(list(dict.fromkeys(needed)))
    tensorrt = [name for name in missing if TENSORRT_LIBRARY.fullmatch(name)]
    cuda = [name for name in missing if name not in tensorrt and name != DRIVER_LIBRARY]
    found = []
    if cuda:
        found.append(f"{_listed(cuda)} missing: {INSTALL_LIBRARIES}")
    if tensorrt:
        package = f"tensorrt-cu{(release or '').partition('.')[0]}<{(tensorrt_major() or 0) + 1}"
        found.append(f"{_listed(tensorrt)} missing: pip install '{package}'")
    if DRIVER_LIBRARY in missing:
        found.append(f"{DRIVER_LIBRARY} is missing: install the NVIDIA driver")
    return "; ".join(found) or None


def _needed(provider: str) -> list[str]:
    path = Path(onnxruntime.__file__).parent / "capi" / PROVIDER_LIBRARIES.get(provider, "")
    return needed_libraries(path) if path.is_file() else []


def _listed(names: list[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last} are" if others else f"{last} is"
