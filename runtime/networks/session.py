"""A graph beside the flow, ready to run: text encoder, autoencoder, denoiser."""

import ctypes
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.base import Provider
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_spec import NetworkSpec


class NetworkSession:
    """Runs a network of a bundle on ONNX Runtime, whatever runs the flow: it runs once for a batch.

    Args:
        bundle: The bundle.
        spec: One of its networks.
        provider: ONNX Runtime's execution provider.
        threads: Threads within an operator on the CPU; 0 leaves the choice to ONNX Runtime.
        lean: For a few runs: see `open_session`.

    Raises:
        BundleError: the graph does not load, or is not the one the manifest describes.
        BackendError: the provider cannot run here.
    """

    def __init__(
        self, bundle: Bundle, spec: NetworkSpec, *, provider: Provider = "cpu", threads: int = 0, lean: bool = False
    ) -> None:
        # Imported here: a program that only looks at bundles does without ONNX Runtime.
        from starflow.runtime.backends.onnxruntime.session import numpy_dtype, open_session

        self._session = open_session(bundle, spec, provider, threads, lean=lean)
        self._dtypes = {tensor.name: numpy_dtype(tensor) for tensor in spec.inputs}
        self._outputs = [tensor.name for tensor in spec.outputs]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the session, and hand its memory back: what comes after it may need as much."""
        del self._session
        # glibc keeps what is freed for the process; another C library has no such function.
        if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
            trim(0)

    def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """All outputs by name; `inputs` by name, converted to the types the graph takes."""
        given = {name: np.ascontiguousarray(inputs[name], dtype) for name, dtype in self._dtypes.items()}
        return dict(zip(self._outputs, self._session.run(None, given), strict=True))
