"""The interface of a backend: a device, for each family of flows a runner of its graphs, and what runs the networks beside the flow."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal, Self

from numpy.typing import NDArray

from starflow.runtime.backends.block_runner import BlockRunner
from starflow.runtime.backends.continuous_runner import ContinuousRunner
from starflow.runtime.backends.memory_bandwidth import BandwidthProbe
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.bundle.network_spec import NetworkSpec

Provider = Literal["cpu", "cuda", "tensorrt"]  # execution providers of ONNX Runtime


class NetworkSessions(ABC):
    """Runs the networks beside the flow, each of which is loaded when it first runs. Several threads may use it at the same time."""

    @abstractmethod
    def run(self, network: NetworkSpec, inputs: Mapping[str, NDArray]) -> NDArray:
        """The output of a network.

        Args:
            network: A network of the bundle, with one output.
            inputs: Every input by name, with the type and shape that the network states.

        Raises:
            BundleError: the network does not load, or is not the one the manifest describes.
            BackendError: it cannot run here, or the run failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what was loaded; a second call does nothing."""


class Backend(ABC):
    """A device and the runners of a variant's graphs. Leaving the context frees both.

    Only one thread may use a backend at a time; its twins may run at the same time.
    """

    name: str  # in reports and stored plans, such as `onnxruntime cpu` or `tensorrt`

    @abstractmethod
    def bandwidth_probe(self) -> BandwidthProbe:
        """A probe of the memory that holds the weights."""

    @abstractmethod
    def block_runner(self, block: int) -> BlockRunner:
        """The runner of a flow block, for autoregressive flows."""

    @abstractmethod
    def continuous_runner(self) -> ContinuousRunner:
        """The runner of the velocity graph, for continuous flows."""

    def open_networks(self, on_onnxruntime: Callable[[], NetworkSessions]) -> NetworkSessions:
        """What runs the networks beside the flow: ONNX Runtime, unless a backend has something better.

        `on_onnxruntime` opens ONNX Runtime.
        """
        return on_onnxruntime()

    @abstractmethod
    def twin(self) -> "Backend":
        """A backend over the same weights, with buffers of its own, for another thread.

        The weights are freed when the last twin is closed.
        """

    @abstractmethod
    def at_batch(self, bundle: Bundle) -> "Backend":
        """A backend of the same kind for the same variant at another batch size.

        Args:
            bundle: The bundle at the other batch size alone, see `Bundle.at_batch`.

        Raises:
            BackendError: the backend cannot run this batch size.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the runners and the device; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class GraphBackend(Backend):
    """A backend that opens each graph of a variant when it is first needed."""

    def __init__(self, bundle: Bundle, variant: Variant) -> None:
        self._bundle, self._variant = bundle, variant
        self._blocks: dict[int, BlockRunner] = {}
        self._continuous: ContinuousRunner | None = None

    @abstractmethod
    def open_block(self, graph: GraphSpec, block: Block, max_chunk: int) -> BlockRunner:
        """Open a step graph; see `BlockRunner` for the arguments."""

    @abstractmethod
    def open_continuous(self, graph: GraphSpec) -> ContinuousRunner:
        """Open a velocity graph."""

    def max_prefill(self, block: Block) -> int | None:
        """Most tokens of a run over the condition; None if it is that of any other run."""
        return None if self._variant.takes_chunks else max(block.prefix, 1)

    def block_runner(self, block: int) -> BlockRunner:
        if block not in self._blocks:
            manifest = self._bundle.autoregressive
            graph = self._bundle.graph(self._variant, block)
            longest = manifest.max_chunk if self._variant.takes_chunks else 1
            self._blocks[block] = self.open_block(graph, manifest.blocks[block], longest)
        return self._blocks[block]

    def continuous_runner(self) -> ContinuousRunner:
        if self._continuous is None:
            self._continuous = self.open_continuous(self._bundle.graph(self._variant, 0))
        return self._continuous

    def close(self) -> None:
        self._blocks.clear()
        self._continuous = None
