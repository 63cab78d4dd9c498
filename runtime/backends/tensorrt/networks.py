"""The networks beside the flow on TensorRT: an engine for each, and ONNX Runtime for those that have none."""

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass

from numpy.typing import NDArray

from starflow.runtime.backends.base import NetworkSessions
from starflow.runtime.backends.cuda.buffers import GraphBuffers
from starflow.runtime.backends.cuda.device import DeviceMemory, Gpu, Stream
from starflow.runtime.backends.tensorrt.build import check_version, choose_build, target_for
from starflow.runtime.backends.tensorrt.engine import EngineSource, GraphEngine, TensorrtRuntime
from starflow.runtime.backends.tensorrt.flavour import Flavour, load_flavour
from starflow.runtime.bundle.build_record import Profile
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.named_network import networks_of
from starflow.runtime.bundle.network_build import (
    NetworkBuildRecord,
    NetworkEngineSpec,
    check_network_engine,
    read_network_builds,
)
from starflow.runtime.bundle.network_spec import NetworkSpec
from starflow.runtime.plain.errors import BackendError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Recorded:
    """An engine that `networks.json` names, and the TensorRT that runs it."""

    record: NetworkBuildRecord
    engine: NetworkEngineSpec
    flavour: Flavour


class TensorrtNetworks(NetworkSessions):
    """Runs the networks of a bundle on a GPU; threads take turns.

    A network without an engine for this GPU runs on ONNX Runtime, and a warning of this module's logger says so and names the
    command that builds one.

    Args:
        bundle: The bundle at one shape.
        on_onnxruntime: Opens ONNX Runtime, when a network first needs it.

    Raises:
        BundleError: a record of network engines is damaged or of a newer schema.
    """

    def __init__(self, bundle: Bundle, gpu: Gpu, on_onnxruntime: Callable[[], NetworkSessions]) -> None:
        self._bundle, self._gpu, self._on_onnxruntime = bundle, gpu, on_onnxruntime
        self._networks = {
            network.spec.file.path: network
            for batch in bundle.manifest.batch_sizes
            for network in networks_of(bundle.manifest.at_batch(batch))
        }
        self._recorded = _engines_for(bundle, gpu)
        self._runners: dict[str, _NetworkRunner] = {}
        self._others: NetworkSessions | None = None
        self._told: set[str] = set()  # networks that run on ONNX Runtime
        self._lock = threading.Lock()

    def run(self, network: NetworkSpec, inputs: Mapping[str, NDArray]) -> NDArray:
        with self._lock:
            if network.file.path in self._recorded:
                return self._runner(network).run(inputs)
            others = self._opened_others(network)
        return others.run(network, inputs)

    def has_engine(self, network: NetworkSpec) -> bool:
        """Whether a network has an engine for this GPU."""
        return network.file.path in self._recorded

    def close(self) -> None:
        if self._others:
            self._others.close()
            self._others = None
        if self._runners:
            self._gpu.release("cudaSetDevice", self._gpu.index)  # after a failed kernel every call reports an error
            with ExitStack() as stack:
                for runner in self._runners.values():
                    stack.enter_context(closing(runner))
            self._runners.clear()

    def _runner(self, network: NetworkSpec) -> "_NetworkRunner":
        path = network.file.path
        if path not in self._runners:
            found, named = self._recorded[path], self._networks[path]
            command = found.record.command(self._bundle, named)
            check_version(self._bundle, found.record, found.flavour, command)
            source = EngineSource(
                path=check_network_engine(self._bundle, found.record, found.engine, named),
                graph=network,
                what=f"the {named.words}",
                profiles=(
                    Profile(minimum=1, optimum=1, maximum=1),
                ),  # shapes are static: the one TensorRT makes itself
                max_tokens=1,
                profile_for=lambda count: 0,
                rebuild=f"build again: {command} --force",
            )
            self._gpu.select()
            self._runners[path] = _NetworkRunner(TensorrtRuntime(found.flavour, self._gpu), source)
        return self._runners[path]

    def _opened_others(self, network: NetworkSpec) -> NetworkSessions:
        """ONNX Runtime, for a network without an engine."""
        named = self._networks[network.file.path]
        command = f"starflow build {self._bundle.root} --target {target_for(self._gpu)} --networks {named.name}"
        lacks = (
            f"the {named.words} has no engine for {self._gpu.name}, compute capability {self._gpu.compute_capability}"
        )
        if self._others is None:
            try:
                self._others = self._on_onnxruntime()
            except ImportError:
                raise BackendError(f"{lacks}, and onnxruntime is not installed; build one: {command}") from None
        if named.words not in self._told:
            self._told.add(named.words)
            logger.warning("%s; ONNX Runtime runs it; build one: %s", lacks, command)
        return self._others


class _NetworkRunner:
    """The engine of one network with buffers of its own: every run is the launch of one graph."""

    def __init__(self, runtime: TensorrtRuntime, source: EngineSource[NetworkSpec]) -> None:
        self._gpu = runtime.gpu
        (self._output,) = source.graph.outputs
        with ExitStack() as stack:
            self._engine = stack.enter_context(closing(GraphEngine(runtime, source)))
            stream = stack.enter_context(closing(Stream(self._gpu)))
            size = max(self._engine.scratch_bytes, 1)
            scratch = stack.enter_context(closing(DeviceMemory(stream, size, f"scratch memory of {source.what}")))
            self._buffers = stack.enter_context(closing(GraphBuffers(stream, source.graph, 1, source.what)))
            self._run = self._engine.capture(scratch, stream, 1, [self._buffers.addresses()], stack)
            self._resources = stack.pop_all()

    def run(self, inputs: Mapping[str, NDArray]) -> NDArray:
        """The output of a run."""
        self._gpu.select()
        for name, value in inputs.items():
            self._buffers[name].store(value, 1)
        self._run.launch()
        return self._buffers[self._output.name].fetch(1).copy()

    def close(self) -> None:
        """Keep the kernels that were compiled, and free the engine."""
        with self._resources:
            self._engine.save_cache()


def open_tensorrt_networks(
    bundle: Bundle, variant: str | None, on_onnxruntime: Callable[[], NetworkSessions], device: int = 0
) -> TensorrtNetworks:
    """The networks of a bundle whose flow TensorRT can run; see `open_tensorrt` for arguments and errors."""
    gpu = Gpu(device)
    choose_build(bundle, variant, gpu)
    return TensorrtNetworks(bundle, gpu, on_onnxruntime)


def _engines_for(bundle: Bundle, gpu: Gpu) -> dict[str, _Recorded]:
    """The engines that a GPU can run, by the path of the graph; those made with the installed release come first."""
    found: list[_Recorded] = []
    for record in read_network_builds(bundle):
        if gpu.compute_capability in record.compute_capabilities:
            try:
                flavour = load_flavour(record.flavour)
            except BackendError:
                continue  # for a TensorRT that is not installed here
            found += [_Recorded(record, engine, flavour) for engine in record.engines]
    chosen: dict[str, _Recorded] = {}
    for each in sorted(found, key=lambda each: each.record.version != each.flavour.version):
        chosen.setdefault(each.engine.graph, each)
    return chosen
