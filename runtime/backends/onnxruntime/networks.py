"""The networks beside the flow on ONNX Runtime."""

import ctypes
import sys
import threading
from collections.abc import Mapping

import onnxruntime
from numpy.typing import NDArray

from starflow.runtime.backends.base import NetworkSessions, Provider
from starflow.runtime.backends.onnxruntime.session import numpy_dtype, open_session, runs
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_spec import NetworkSpec


class OnnxRuntimeNetworks(NetworkSessions):
    """A session for each network. `lean` is for a few runs; see `open_session` for it and the other arguments."""

    def __init__(self, bundle: Bundle, provider: Provider = "cpu", threads: int = 0, *, lean: bool = False) -> None:
        self._bundle, self._provider, self._threads, self._lean = bundle, provider, threads, lean
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._loading = threading.Lock()

    def run(self, network: NetworkSpec, inputs: Mapping[str, NDArray]) -> NDArray:
        given = {spec.name: inputs[spec.name].astype(numpy_dtype(spec), copy=False) for spec in network.inputs}
        session = self._session(network)
        with runs(network):
            output: NDArray = session.run(None, given)[0]
        return output

    def _session(self, network: NetworkSpec) -> onnxruntime.InferenceSession:
        path = network.file.path
        with self._loading:
            if path not in self._sessions:
                self._sessions[path] = open_session(
                    self._bundle, network, self._provider, self._threads, lean=self._lean
                )
            return self._sessions[path]

    def close(self) -> None:
        """Free the sessions and return their memory to the system: what runs next may need as much."""
        self._sessions.clear()
        # glibc keeps freed memory for the process; other C libraries lack this function.
        if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
            trim(0)
