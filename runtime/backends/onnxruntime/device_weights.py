"""The weights of a variant in GPU memory, once for all sessions that read them."""

import threading
from pathlib import Path

import onnxruntime
from numpy.typing import NDArray
from safetensors import safe_open

from starflow.runtime.backends.cuda.device import Gpu
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import FileSpec
from starflow.runtime.plain.errors import BackendError, first_line

NUMPY_TYPES = ("F32", "F16", "I64", "I32", "I8", "U8")  # a session reads weights of any other type from the file itself


class DeviceWeights:
    """The tensors of a weight file, loaded when the first session needs them."""

    def __init__(self, bundle: Bundle, file: FileSpec, gpu: Gpu) -> None:
        self._bundle, self._file, self._gpu = bundle, file, gpu
        self._lock = threading.Lock()
        self._loaded: dict[str, onnxruntime.OrtValue] = {}

    def tensors(self) -> dict[str, onnxruntime.OrtValue]:
        """Every tensor by its name, which is that of the initialiser in the graphs.

        Raises:
            BundleError: the file was changed after the bundle was opened.
            BackendError: the GPU has too little memory.
        """
        with self._lock:
            if not self._loaded:
                with self._bundle.reading(self._file) as path:
                    self._loaded = self._load(path)
            return self._loaded

    def close(self) -> None:
        """Let go of the tensors."""
        self._loaded = {}

    def _load(self, path: Path) -> dict[str, onnxruntime.OrtValue]:
        if not hasattr(onnxruntime.OrtValue, "from_dlpack"):
            return {}  # older releases cannot share: every session reads weights of its own
        with safe_open(path, "numpy") as file:
            return {
                name: self._on_device(file.get_tensor(name))
                for name in file.keys()  # noqa: SIM118, it is no mapping
                if file.get_slice(name).get_dtype() in NUMPY_TYPES
            }

    def _on_device(self, array: NDArray) -> onnxruntime.OrtValue:
        try:
            owned = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", self._gpu.index)
        except Exception as error:  # a dozen types
            free, total = self._gpu.memory()
            raise BackendError(
                f"{self._bundle.root / self._file.path}: needs {self._file.bytes:,} bytes of GPU memory, {free:,} of "
                f"{total:,} are left ({first_line(error)}); free some memory"
            ) from error
        return onnxruntime.OrtValue.from_dlpack(owned)  # a session shares only what it may not free
