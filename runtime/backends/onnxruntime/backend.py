"""ONNX Runtime as a backend: the CPU, or a device through one of its execution providers."""

from pathlib import Path

from onnxruntime import InferenceSession

from starflow.runtime.backends.base import GraphBackend, Provider
from starflow.runtime.backends.block_runner import BlockRunner
from starflow.runtime.backends.cuda.bandwidth import CudaBandwidthProbe
from starflow.runtime.backends.cuda.device import Gpu
from starflow.runtime.backends.memory_bandwidth import BandwidthProbe, HostBandwidthProbe
from starflow.runtime.backends.onnxruntime.block_runner import DeviceBlockRunner, HostBlockRunner
from starflow.runtime.backends.onnxruntime.continuous_runner import OnnxRuntimeContinuousRunner
from starflow.runtime.backends.onnxruntime.release import check_release
from starflow.runtime.backends.onnxruntime.session import open_session
from starflow.runtime.backends.onnxruntime.sessions import Sessions
from starflow.runtime.backends.onnxruntime.thread_choice import fastest_runner, thread_counts
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec
from starflow.runtime.bundle.manifest import Variant


class OnnxRuntimeBackend(GraphBackend):
    """Sessions for the graphs of one variant.

    Args:
        variant: The variant to run; providers other than `cpu` need a portable one.
        provider: The execution provider. A session that falls back to another one is an error.
        threads: Number of threads within an operator on the CPU; 0 measures for each block whether one or all cores are faster.
        profiles: Folder in which ONNX Runtime's profiler writes `block<index>_*.json` on the CPU when the backend is closed.
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
        check_release(variant)
        self.name = f"onnxruntime {provider}"
        self._provider, self._threads, self._profiles = provider, threads, profiles
        self._sessions = Sessions()

    def bandwidth_probe(self) -> BandwidthProbe:
        return HostBandwidthProbe(self._threads) if self._provider == "cpu" else CudaBandwidthProbe(Gpu())

    def open_continuous(self, graph: GraphSpec) -> OnnxRuntimeContinuousRunner:
        session = self._sessions.of(graph, lambda: self._open(graph, self._threads))
        return OnnxRuntimeContinuousRunner(session, graph, "cpu" if self._provider == "cpu" else "cuda")

    def open_block(self, graph: GraphSpec, block: Block, max_chunk: int) -> BlockRunner:
        if self._provider != "cpu":
            session = self._sessions.of(graph, lambda: self._open(graph, 0))
            return DeviceBlockRunner(session, graph, block, max_chunk)

        prefill = self.max_prefill(block)

        def open_runner(threads: int) -> HostBlockRunner:
            return HostBlockRunner(self._open(graph, threads), graph, block, max_chunk, prefill)

        def load() -> InferenceSession:
            few, *more = thread_counts(self._threads, graph.weight_bytes)
            return fastest_runner(open_runner, (few, *more)).session if more else self._open(graph, few)

        return HostBlockRunner(self._sessions.of(graph, load), graph, block, max_chunk, prefill)

    def _open(self, graph: GraphSpec, threads: int) -> InferenceSession:
        profile = self._profiles / f"block{graph.block}" if self._profiles else None
        return open_session(self._bundle, graph, self._provider, threads, profile)

    def twin(self) -> "OnnxRuntimeBackend":
        return self._joined(self._bundle, self._variant)

    def at_batch(self, bundle: Bundle) -> "OnnxRuntimeBackend":
        return self._joined(bundle, bundle.variant(self._variant.name, self._variant.lowering))

    def _joined(self, bundle: Bundle, variant: Variant) -> "OnnxRuntimeBackend":
        """A backend that shares its sessions with this one: what either loads, both have."""
        made = OnnxRuntimeBackend(bundle, variant, self._provider, self._threads)
        made._sessions = self._sessions
        return made

    def close(self) -> None:
        super().close()
        self._sessions = Sessions()

    def profiled(self, block: int, folder: Path) -> "OnnxRuntimeBackend":
        """A second backend with ONNX Runtime's profiler, which runs a flow block with as many threads as this one.

        The profiler writes into `folder`, see `profiles`.
        """
        runner = self.block_runner(block)
        assert isinstance(runner, HostBlockRunner | DeviceBlockRunner)
        threads = runner.session.get_session_options().intra_op_num_threads
        return OnnxRuntimeBackend(self._bundle, self._variant, self._provider, threads, folder)
