"""A backend that samples through TensorRT's parser and the network interpreter."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starflow.export.tensorrt.interpreter.interpreter import NetworkInterpreter
from starflow.export.tensorrt.parse import parse_graph
from starflow.runtime.backends.base import GraphBackend
from starflow.runtime.backends.block_runner import BlockRunner
from starflow.runtime.backends.continuous_runner import STATE, ContinuousRunner
from starflow.runtime.backends.memory_bandwidth import HostBandwidthProbe
from starflow.runtime.backends.tensorrt.flavour import Flavour, load_flavour
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec, fixed_shape
from starflow.runtime.bundle.manifest import Variant


class NetworkContinuousRunner(ContinuousRunner):
    """Buffers are what an engine's would be, each `*_next` copied back after a pass."""

    def __init__(self, bundle: Bundle, graph: GraphSpec, flavour: Flavour, rounding: bool) -> None:
        super().__init__(graph)
        self.interpreter = NetworkInterpreter(parse_graph(flavour, bundle.root / graph.file.path, 0), rounding=rounding)
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


class NetworkBlockRunner(BlockRunner):
    """One flow block, interpreted.

    Buffers are what an engine's would be: one array for each input, caches and samples updated in it, and a single step's
    token and next position written back into the inputs of the next one.
    """

    def __init__(
        self, bundle: Bundle, graph: GraphSpec, block: Block, max_chunk: int, flavour: Flavour, rounding: bool
    ) -> None:
        super().__init__(block, graph, max_chunk)
        parsed = parse_graph(flavour, bundle.root / graph.file.path, block.index)
        self.interpreter = NetworkInterpreter(parsed, rounding=rounding)
        self._specs = {spec.name: spec for spec in graph.inputs}
        self._fixed = {spec.name: self._zeros(spec.name, 1) for spec in graph.inputs if "S" not in spec.shape}
        self._position = self._fixed["position"]
        self._next_position = np.zeros_like(self._position)
        self._sized: dict[int, dict[str, NDArray]] = {}

    def store(self, name: str, value: ArrayLike, count: int = 1) -> None:
        self._buffer(name, count)[...] = value

    def fetch(self, name: str, count: int = 1) -> NDArray:
        return self._buffer(name, count)

    def run(self, count: int) -> None:
        sized = self._sizes(count)
        inputs = {name: sized[name] if name in sized else self._fixed[name] for name in self._specs}
        self.interpreter.run(inputs, {"x": sized["x"], "position_next": self._next_position})

    def seek(self, position: int) -> None:
        self._position[0] = position

    def tell(self) -> int:
        return int(self._position[0])

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.run(1)
            self._position[...] = self._next_position

    def clear(self) -> None:
        for name, spec in self._specs.items():
            if spec.role == "cache":
                self._fixed[name][...] = 0

    def _buffer(self, name: str, count: int) -> NDArray:
        return self._fixed[name] if name in self._fixed else self._sizes(count)[name]

    def _sizes(self, count: int) -> dict[str, NDArray]:
        """The buffers whose size is the number of tokens; for single steps the token is the next `previous`."""
        if count not in self._sized:
            sized = {name: self._zeros(name, count) for name in self._specs if name not in self._fixed}
            sized["x"] = sized["previous"] if count == 1 else np.zeros_like(sized["previous"])
            self._sized[count] = sized
        return self._sized[count]

    def _zeros(self, name: str, count: int) -> NDArray:
        return np.zeros(fixed_shape(self._specs[name], count), self.interpreter.inputs[name].dtype)


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

    def bandwidth_probe(self) -> HostBandwidthProbe:
        return HostBandwidthProbe(threads=0)

    def open_block(self, graph: GraphSpec, block: Block, max_chunk: int) -> NetworkBlockRunner:
        return NetworkBlockRunner(self._bundle, graph, block, max_chunk, self._flavour, self._rounding)

    def open_continuous(self, graph: GraphSpec) -> NetworkContinuousRunner:
        return NetworkContinuousRunner(self._bundle, graph, self._flavour, self._rounding)
