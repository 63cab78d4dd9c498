"""ONNX Runtime as a backend: the CPU, or a device through one of its execution providers."""

from pathlib import Path

from starflow.runtime.backends.base import BandwidthProbe, GraphBackend, Provider
from starflow.runtime.backends.block_runner import BlockRunner
from starflow.runtime.backends.cuda.bandwidth import CudaBandwidthProbe
from starflow.runtime.backends.cuda.device import Gpu
from starflow.runtime.backends.memory_bandwidth import HostBandwidthProbe
from starflow.runtime.backends.onnxruntime.continuous_runner import OnnxRuntimeContinuousRunner
from starflow.runtime.backends.onnxruntime.device_runner import DeviceBlockRunner
from starflow.runtime.backends.onnxruntime.host_runner import HostBlockRunner
from starflow.runtime.backends.onnxruntime.thread_choice import fastest_runner, thread_counts
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec
from starflow.runtime.bundle.manifest import Variant


class OnnxRuntimeBackend(GraphBackend):
    """Sessions of one variant's graphs.

    Args:
        bundle: An open bundle.
        variant: The variant to run; one of the portable lowering for other providers than `cpu`.
        provider: What runs it. A session that fell back to another one is an error.
        threads: Threads within an operator on the CPU; 0 measures, for each block, whether one or all cores are faster.
        profiles: Folder for what ONNX Runtime's profiler writes on the CPU, `block<index>_*.json`, once this is closed.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        provider: Provider = "cpu",
        threads: int = 0,
        profiles: Path | None = None,
    ) -> None:
        super().__init__(bundle, variant)
        self.name = f"onnxruntime {provider}"
        self._provider, self._threads, self._profiles = provider, threads, profiles
        self._threads_of: dict[int, int] = {}

    def bandwidth_probe(self) -> BandwidthProbe:
        return HostBandwidthProbe(self._threads) if self._provider == "cpu" else CudaBandwidthProbe(Gpu())

    def open_continuous(self, graph: GraphSpec) -> OnnxRuntimeContinuousRunner:
        return OnnxRuntimeContinuousRunner(self._bundle, graph, self._provider, self._threads)

    def open_block(self, graph: GraphSpec, block: Block, max_chunk: int) -> BlockRunner:
        if self._provider != "cpu":
            return DeviceBlockRunner(self._bundle, graph, block, max_chunk, self._provider)
        profile = self._profiles / f"block{block.index}" if self._profiles else None

        def open_runner(threads: int) -> HostBlockRunner:
            return HostBlockRunner(self._bundle, graph, block, max_chunk, threads, profile)

        runner = fastest_runner(open_runner, thread_counts(self._threads, graph.weight_bytes))
        self._threads_of[block.index] = runner.threads
        return runner

    def profiled(self, block: int, folder: Path) -> "OnnxRuntimeBackend":
        """A second backend, watched by ONNX Runtime's profiler, with as many threads as a flow block has here.

        Args:
            block: The flow block.
            folder: Where the profiler writes, see `profiles`.
        """
        self.block_runner(block)
        return OnnxRuntimeBackend(self._bundle, self._variant, self._provider, self._threads_of[block], folder)
