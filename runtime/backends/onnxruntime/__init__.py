"""ONNX Runtime, on the CPU and on devices. Every module here needs one of its two builds, so this says which to install.

Raises:
    BackendError: on import, where ONNX Runtime is not installed, does not load, or is only half there.
"""

from starflow.runtime.plain.errors import BackendError
from starflow.runtime.plain.install_hint import REPLACE_BY_CPU_BUILD, REPLACE_BY_GPU_BUILD, onnxruntime_hint

try:
    import onnxruntime as onnxruntime
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":
        raise
    raise BackendError(f"ONNX Runtime is not installed: {onnxruntime_hint()}") from None
except (ImportError, OSError) as error:
    reason = " ".join(str(error).split())[:200]
    raise BackendError(f"ONNX Runtime is installed but does not load: {reason}") from None

if not hasattr(onnxruntime, "InferenceSession"):  # of a folder without its files Python makes an empty package
    raise BackendError(
        "ONNX Runtime's files are incomplete, as after one of its two builds was uninstalled: "
        f"{REPLACE_BY_CPU_BUILD}; for NVIDIA GPUs: {REPLACE_BY_GPU_BUILD}"
    )
