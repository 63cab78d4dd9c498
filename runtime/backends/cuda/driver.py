"""What the NVIDIA driver of this machine supports, asked without cuda-python, which an old driver refuses to serve."""

import ctypes

DRIVER_LIBRARY = "libcuda.so.1"
OLDEST_DRIVER = {12: 525, 13: 580}  # the first driver for each major release of CUDA, on Linux

# What to install where the driver is for CUDA 12 and cannot be updated.
FOR_CUDA_12 = {
    "onnxruntime": "pip install 'onnxruntime-gpu[cuda,cudnn]<1.27'",
    "cuda-python": "pip install 'cuda-python<13'",
    "torch": "install a build of torch for CUDA 12",
    "tensorrt": "pip install tensorrt-cu12 in place of tensorrt-cu13",
    "tensorrt-rtx": "pip install tensorrt-rtx-cu12 in place of tensorrt-rtx-cu13",
}


def driver_cuda_version() -> tuple[int, int] | None:
    """The newest CUDA release the driver is for, such as (13, 0); None where there is no driver."""
    try:
        library = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return None
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return number.value // 1000, number.value % 1000 // 10


def too_old_driver(package: str, release: str) -> str | None:
    """That the driver is too old for a package, and what mends it; None if it is not, or there is no driver.

    Args:
        package: A name of `FOR_CUDA_12`.
        release: The release of CUDA the package was built for, such as "13.0". A driver for a later or the same major release serves it.
    """
    version, needed = driver_cuda_version(), int(release.partition(".")[0])
    if version is None or version[0] >= needed:
        return None
    driver = f" to {OLDEST_DRIVER[needed]} or newer" if needed in OLDEST_DRIVER else ""
    other = f", or {FOR_CUDA_12[package]}" if version[0] == 12 else ""
    return f"the NVIDIA driver is for CUDA {version[0]}.{version[1]}, which is too old for CUDA {needed}: update it{driver}{other}"
