"""TensorRT on a GPU as a backend: the engines of one build."""

import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial

from starflow.runtime.backends.base import Backend, NetworkSessions
from starflow.runtime.backends.cuda.bandwidth import CudaBandwidthProbe
from starflow.runtime.backends.cuda.block_runner import CapturedBlockRunner
from starflow.runtime.backends.cuda.continuous_runner import CapturedContinuousRunner
from starflow.runtime.backends.cuda.device import DeviceMemory, Gpu, Stream
from starflow.runtime.backends.tensorrt.build import choose_build, rebuild_advice
from starflow.runtime.backends.tensorrt.engine import GraphEngine, TensorrtRuntime, block_source
from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.backends.tensorrt.networks import TensorrtNetworks
from starflow.runtime.bundle.build_record import BuildRecord
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.plain.errors import BackendError, BundleError
from starflow.runtime.plain.shared import Shared


class Engines:
    """The engines of one build on one GPU.

    Raises:
        BundleError: an engine is missing or damaged, needs another TensorRT, or is not the engine of its graph.
        BackendError: the GPU has too little memory.
    """

    def __init__(self, bundle: Bundle, record: BuildRecord, flavour: Flavour, gpu: Gpu) -> None:
        self.variant = bundle.variant(record.variant, "portable")
        missing = {graph.block for graph in self.variant.graphs} - {spec.block for spec in record.engines}
        if missing:
            raise BundleError(
                f"{bundle.root}: build {record.target} of {record.variant} has no engine for flow block {min(missing)}; "
                f"{rebuild_advice(bundle, record)}"
            )
        gpu.select()
        with ExitStack() as stack:
            runtime = TensorrtRuntime(flavour, gpu)
            self.loaded = [
                stack.enter_context(closing(GraphEngine(runtime, block_source(bundle, record, spec))))
                for spec in record.engines
            ]
            self._resources = stack.pop_all()

    def close(self) -> None:
        """Keep the kernels that were compiled, and free the engines."""
        with self._resources:
            for engine in self.loaded:
                engine.save_cache()


class LoadedBuilds:
    """The engines that a backend shares with its twins: those of each batch size, loaded when they are first needed."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._lock = threading.Lock()
        self._loaded: dict[int, Engines] = {}

    def of(self, bundle: Bundle, record: BuildRecord, flavour: Flavour) -> Engines:
        """The engines of a bundle at one batch size; the first who asks loads them, while others wait."""
        batch = bundle.manifest.batch
        with self._lock:
            if batch not in self._loaded:
                self._loaded[batch] = Engines(bundle, record, flavour, self.gpu)
            return self._loaded[batch]

    def close(self) -> None:
        """Free all engines."""
        with ExitStack() as stack:
            for engines in self._loaded.values():
                stack.enter_context(closing(engines))


class TensorrtBackend(Backend):
    """Runs the engines of one build. The constructor allocates and captures everything.

    Args:
        engines: Where to find the engines, or to load them; the backend becomes an owner.
        record: The build to run, and `flavour` the TensorRT that runs it.

    Raises:
        BundleError: an engine is missing or damaged, needs another TensorRT, or is not the engine of its graph.
        BackendError: the GPU has too little memory, or TensorRT refuses to run there.
    """

    name = "tensorrt"

    def __init__(self, engines: Shared[LoadedBuilds], bundle: Bundle, record: BuildRecord, flavour: Flavour) -> None:
        self._engines, self._bundle, self.record, self._flavour = engines, bundle, record, flavour
        gpu, manifest = engines.resource.gpu, bundle.manifest
        self.device_name = gpu.name
        with ExitStack() as stack:
            stack.enter_context(closing(engines))
            shared = engines.resource.of(bundle, record, flavour)
            self.variant = shared.variant
            gpu.select()
            self._stream = stack.enter_context(closing(Stream(gpu)))
            # Runs never overlap, so they share memory of the largest size. CUDA graphs keep its address: it must not grow later.
            size = max(engine.scratch_bytes for engine in shared.loaded)
            scratch = stack.enter_context(
                closing(DeviceMemory(self._stream, max(size, 1), "the engines' scratch memory"))
            )
            self._blocks: dict[int, CapturedBlockRunner] = {}
            self._continuous: CapturedContinuousRunner | None = None
            for engine in shared.loaded:
                capture = partial(engine.capture, scratch, self._stream)
                if isinstance(manifest, ContinuousManifest):
                    self._continuous = CapturedContinuousRunner(engine.graph, engine.what, self._stream, capture)
                    stack.enter_context(closing(self._continuous))
                else:
                    block = manifest.blocks[engine.graph.block]
                    runner = CapturedBlockRunner(engine, block, manifest.max_chunk, self._stream, capture)
                    self._blocks[block.index] = stack.enter_context(closing(runner))
            self._resources = stack.pop_all()

    def close(self) -> None:
        if not (self._blocks or self._continuous):
            return
        gpu = self._stream.gpu
        gpu.release("cudaSetDevice", gpu.index)  # `release`, since after a failed kernel every call reports an error
        self._blocks.clear()
        self._continuous = None
        self._resources.close()

    def twin(self) -> "TensorrtBackend":
        return TensorrtBackend(self._engines.joined(), self._bundle, self.record, self._flavour)

    def at_batch(self, bundle: Bundle) -> "TensorrtBackend":
        build = choose_build(bundle, self.variant.name, self._engines.resource.gpu)
        return TensorrtBackend(self._engines.joined(), bundle, *build)

    def open_networks(self, on_onnxruntime: Callable[[], NetworkSessions]) -> TensorrtNetworks:
        return TensorrtNetworks(self._bundle, self._engines.resource.gpu, on_onnxruntime)

    def bandwidth_probe(self) -> CudaBandwidthProbe:
        """A probe of this GPU's memory, of which it needs 2 GiB."""
        return CudaBandwidthProbe(self._stream.gpu)

    def block_runner(self, block: int) -> CapturedBlockRunner:
        if block not in self._blocks:
            raise BackendError(f"the backend was closed, or {self.record.target} has no engine for flow block {block}")
        return self._blocks[block]

    def continuous_runner(self) -> CapturedContinuousRunner:
        if self._continuous is None:
            raise BackendError(f"the backend was closed, or {self.record.target} has no engine for a velocity graph")
        return self._continuous


def open_tensorrt(bundle: Bundle, variant: str | None = None, device: int = 0) -> TensorrtBackend:
    """Open the engines of a bundle on a GPU; those of smaller batch sizes have to be there.

    Args:
        variant: Name of the variant whose engines run; None takes the first one built for this GPU.
        device: Number of the GPU, counted by CUDA from 0.

    Raises:
        BackendError: there is no usable GPU, no build for it, no TensorRT for the build, or too little memory.
        BundleError: the engines are damaged, or belong to another bundle or another TensorRT.
        UsageError: there is no such GPU.
    """
    gpu = Gpu(device)
    record, flavour = choose_build(bundle, variant, gpu)
    for batch in bundle.manifest.batch_sizes[1:]:
        choose_build(bundle.at_batch(batch), record.variant, gpu)  # refused now, and not once images need it
    return TensorrtBackend(Shared(LoadedBuilds(gpu)), bundle, record, flavour)
