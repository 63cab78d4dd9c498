"""A backend that samples through TensorRT's parser and the network interpreter."""

import numpy as np
from numpy.typing import NDArray

from starflow.export.tensorrt.interpreter.interpreter import NetworkInterpreter
from starflow.export.tensorrt.parse import parse_graph
from starflow.runtime.backends.array_block_runner import ArrayBlockRunner
from starflow.runtime.backends.base import GraphBackend
from starflow.runtime.backends.continuous_runner import STATE, ContinuousRunner
from starflow.runtime.backends.memory_bandwidth import HostBandwidthProbe
from starflow.runtime.backends.tensorrt.flavour import Flavour, load_flavour
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec, TensorSpec
from starflow.runtime.bundle.manifest import Variant


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


class NetworkBlockRunner(ArrayBlockRunner):
    """One flow block, interpreted.

    Buffers are what an engine's would be: caches and samples are updated in place, and a single step's token and next position
    are written back into the inputs of the next one.
    """

    def __init__(
        self, bundle: Bundle, graph: GraphSpec, block: Block, max_chunk: int, flavour: Flavour, rounding: bool
    ) -> None:
        parsed = parse_graph(flavour, bundle.path(graph.file), block.index)
        self.interpreter = NetworkInterpreter(parsed, rounding=rounding)
        super().__init__(block, graph, max_chunk)

    def dtype(self, spec: TensorSpec) -> np.dtype:
        return (self.interpreter.inputs | self.interpreter.outputs)[spec.name].dtype

    def run(self, count: int) -> None:
        inputs = {spec.name: self.fetch(spec.name, count) for spec in self.graph.inputs}
        self.interpreter.run(inputs, {name: self.fetch(name, count) for name in ("x", "position_next")})

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.run(1)
            self.store("position", self.fetch("position_next"))


class NetworkBackend(GraphBackend):
    """The graphs of a portable variant, as TensorRT's parser understood them.

    Opening one raises ExportError if the parser refuses its graph, or the interpreter does not know a layer.

    Args:
        flavour_name: Whose parser: `tensorrt-rtx` parses on any machine, `tensorrt` needs a GPU.
        rounding: Round where the network does, in place of float32 throughout.
    """

    name = "network"

    def __init__(
        self, bundle: Bundle, variant: Variant, flavour_name: str = "tensorrt-rtx", rounding: bool = False
    ) -> None:
        super().__init__(bundle, variant)
        self._flavour, self._rounding = load_flavour(flavour_name), rounding

    def twin(self) -> "NetworkBackend":
        return NetworkBackend(self._bundle, self._variant, self._flavour.name, self._rounding)

    def at_batch(self, bundle: Bundle) -> "NetworkBackend":
        variant = bundle.variant(self._variant.name, self._variant.lowering)
        return NetworkBackend(bundle, variant, self._flavour.name, self._rounding)

    def bandwidth_probe(self) -> HostBandwidthProbe:
        return HostBandwidthProbe(threads=0)

    def open_block(self, graph: GraphSpec, block: Block, max_chunk: int) -> NetworkBlockRunner:
        return NetworkBlockRunner(self._bundle, graph, block, max_chunk, self._flavour, self._rounding)

    def open_continuous(self, graph: GraphSpec) -> NetworkContinuousRunner:
        return NetworkContinuousRunner(self._bundle, graph, self._flavour, self._rounding)
