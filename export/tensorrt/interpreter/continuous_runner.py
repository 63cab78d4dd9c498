"""A velocity graph as TensorRT's parser understood it, run by the network interpreter."""

import numpy as np
from numpy.typing import NDArray

from starflow.export.tensorrt.interpreter.interpreter import NetworkInterpreter
from starflow.export.tensorrt.parse import parse_graph
from starflow.runtime.backends.continuous_runner import STATE, ContinuousRunner
from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec


class NetworkContinuousRunner(ContinuousRunner):
    """Buffers are what an engine's would be, each `*_next` copied back after a pass."""

    def __init__(self, bundle: Bundle, graph: GraphSpec, flavour: Flavour, rounding: bool) -> None:
        super().__init__(graph)
        self.interpreter = NetworkInterpreter(parse_graph(flavour, bundle.path(graph.file), 0), rounding=rounding)
        buffers = {**self.interpreter.inputs, **self.interpreter.outputs}
        self._buffers = {name: np.zeros(buffer.shape, buffer.dtype) for name, buffer in buffers.items()}

    def store(self, name: str, value: NDArray) -> None:
        self._buffers[name][...] = value

    def fetch(self, name: str) -> NDArray:
        return self._buffers[name]

    def advance(self, passes: int) -> None:
        inputs = {spec.name: self._buffers[spec.name] for spec in self.graph.inputs}
        outputs = {spec.name: self._buffers[spec.name] for spec in self.graph.outputs}
        for _ in range(passes):
            self.interpreter.run(inputs, outputs)
            for name in STATE:
                self._buffers[name][...] = self._buffers[f"{name}_next"]
