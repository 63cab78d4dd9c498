"""The sessions that a backend shares with its twins: ONNX Runtime runs one session for several threads at once."""

import threading
from collections.abc import Callable

from onnxruntime import InferenceSession

from starflow.runtime.bundle.graph_spec import GraphSpec


class Sessions:
    """The session of each graph, loaded when it is first needed. Its weights, as ONNX Runtime packs them, exist once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[str, InferenceSession] = {}

    def of(self, graph: GraphSpec, load: Callable[[], InferenceSession]) -> InferenceSession:
        """The session of a graph; `load` is called for the first who asks, while others wait."""
        with self._lock:
            if graph.file.path not in self._loaded:
                self._loaded[graph.file.path] = load()
            return self._loaded[graph.file.path]
