"""What runs the networks of a bundle beside the flow: the base of autoencoder, caption encoder and denoiser."""

import ctypes
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.base import Provider
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_spec import NetworkSpec
from starflow.runtime.plain.batches import batches
from starflow.runtime.plain.thread_count import check_threads


class NetworkRunner:
    """Runs networks of a bundle on ONNX Runtime, whatever runs the flow, for several threads at the same time.

    Each graph is loaded when it first runs. `lean` is for a few runs; see `open_session` for it and the other arguments.
    """

    def __init__(self, bundle: Bundle, provider: Provider, threads: int, *, lean: bool = False) -> None:
        check_threads(threads)
        self.bundle = bundle
        self._provider, self._threads, self._lean = provider, threads, lean
        self._sessions: dict[str, Any] = {}
        self._loading = threading.Lock()

    def run(self, networks: Sequence[NetworkSpec], inputs: Mapping[str, NDArray]) -> NDArray[np.float32]:
        """The output of a network for N samples, which run in batches of the exported sizes, the last one padded.

        Args:
            networks: A network with one output, at each of its batch sizes.
            inputs: [N, ...] for each input, by name; converted to the type the graph takes.

        Raises:
            BundleError: the graph does not load, or is not the one the manifest describes.
            BackendError: the provider cannot run here, or a run failed.
        """
        # Imported here: a program that only reads bundles needs no ONNX Runtime.
        from starflow.runtime.backends.onnxruntime.session import numpy_dtype, runs

        by_size = {int(network.inputs[0].shape[0]): network for network in networks}
        specs = networks[0].inputs
        given = {spec.name: np.ascontiguousarray(inputs[spec.name], numpy_dtype(spec)) for spec in specs}
        count, parts = len(given[specs[0].name]), []
        for _, index in batches(count, *by_size):
            network = by_size[len(index)]
            session = self._session(network)
            with runs(network):
                parts.append(session.run(None, {name: values[index] for name, values in given.items()})[0])
        return np.concatenate(parts)[:count]

    def _session(self, network: NetworkSpec) -> Any:
        from starflow.runtime.backends.onnxruntime.session import open_session

        path = network.file.path
        with self._loading:
            if path not in self._sessions:
                self._sessions[path] = open_session(
                    self.bundle, network, self._provider, self._threads, lean=self._lean
                )
            return self._sessions[path]

    def close(self) -> None:
        """Free the sessions and return their memory to the system: what runs next may need as much."""
        self._sessions.clear()
        # glibc keeps freed memory for the process; other C libraries lack this function.
        if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
            trim(0)
