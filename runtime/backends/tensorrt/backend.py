"""TensorRT on a GPU as a backend: the engines of one build."""

import threading
from collections.abc import Callable, Collection
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
from starflow.runtime.bundle.graph_spec import GraphSpec
from starflow.runtime.plain.errors import BackendError, BundleError
from starflow.runtime.plain.shared import Shared


class Engines:
    """The engines of one build on one GPU.

    Args:
        unused: Flow blocks whose engines are not loaded until `of` is asked for them.

    Raises:
        BundleError: an engine is missing or damaged, needs another TensorRT, or is not the engine of its graph.
        BackendError: the GPU has too little memory.
    """

    def __init__(
        self, bundle: Bundle, record: BuildRecord, flavour: Flavour, gpu: Gpu, unused: Collection[int] = ()
    ) -> None:
        self.variant = bundle.variant(record.variant, "portable")
        missing = {graph.block for graph in self.variant.graphs} - {spec.block for spec in record.engines}
        if missing:
            raise BundleError(
                f"{bundle.root}: build {record.target} of {record.variant} has no engine for flow block {min(missing)}; "
                f"{rebuild_advice(bundle, record)}"
            )
        gpu.select()
        self._bundle, self._record = bundle, record
        self._runtime = TensorrtRuntime(flavour, gpu)
        self._specs = {spec.block: spec for spec in record.engines}
        self._lock = threading.Lock()
        self._loaded: dict[int, GraphEngine[GraphSpec]] = {}
        with ExitStack() as self._resources:
            for block in self._specs:
                if block not in unused:
                    self.of(block)
            self._resources = self._resources.pop_all()

    @property
    def blocks(self) -> Collection[int]:
        """The flow blocks that have an engine; block 0 is a velocity graph."""
        return self._specs.keys()

    def of(self, block: int) -> GraphEngine[GraphSpec]:
        """The engine of a flow block; the first who asks loads it, on the calling thread's current GPU, while others wait."""
        with self._lock:
            if block not in self._loaded:
                engine = GraphEngine(self._runtime, block_source(self._bundle, self._record, self._specs[block]))
                self._loaded[block] = self._resources.enter_context(closing(engine))
            return self._loaded[block]

    def close(self) -> None:
        """Keep the kernels that were compiled, and free the engines."""
        with self._resources:
            for engine in self._loaded.values():
                engine.save_cache()


class LoadedBuilds:
    """The engines that a backend shares with its twins: those of each batch size, loaded when they are first needed."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._lock = threading.Lock()
        self._loaded: dict[int, Engines] = {}

    def of(self, bundle: Bundle, record: BuildRecord, flavour: Flavour, unused: Collection[int]) -> Engines:
        """The engines of a bundle at one batch size; the first who asks loads them, those `unused` excepted, while others wait."""
        batch = bundle.manifest.batch
        with self._lock:
            if batch not in self._loaded:
                self._loaded[batch] = Engines(bundle, record, flavour, self.gpu, unused)
            return self._loaded[batch]

    def close(self) -> None:
        """Free all engines."""
        with ExitStack() as stack:
            for engines in self._loaded.values():
                stack.enter_context(closing(engines))


class TensorrtBackend(Backend):
    """Runs the engines of one build. The constructor allocates and captures everything but what is unused.

    Args:
        engines: Where to find the engines, or to load them; the backend becomes an owner.
        record: The build to run, and `flavour` the TensorRT that runs it.
        unused: Flow blocks that are loaded once their runner is asked for.

    Raises:
        BundleError: an engine is missing or damaged, needs another TensorRT, or is not the engine of its graph.
        BackendError: the GPU has too little memory, or TensorRT refuses to run there.
    """

    name = "tensorrt"

    def __init__(
        self,
        engines: Shared[LoadedBuilds],
        bundle: Bundle,
        record: BuildRecord,
        flavour: Flavour,
        unused: Collection[int] = (),
    ) -> None:
        self._engines, self._bundle, self.record, self._flavour = engines, bundle, record, flavour
        gpu = engines.resource.gpu
        self.device_name = gpu.name
        with ExitStack() as stack:
            stack.enter_context(closing(engines))
            self._build = engines.resource.of(bundle, record, flavour, unused)
            self.variant = self._build.variant
            gpu.select()
            self._stream = stack.enter_context(closing(Stream(gpu)))
            self._blocks: dict[int, CapturedBlockRunner] = {}
            self._continuous: CapturedContinuousRunner | None = None
            self._unused = set(self._build.blocks) & set(unused)
            first = [self._build.of(block) for block in self._build.blocks if block not in unused]
            # Runs never overlap, so they share memory of the largest size.
            self._scratch = self._scratch_memory(max((engine.scratch_bytes for engine in first), default=0), stack)
            for engine in first:
                self._open(engine, self._scratch, stack)
            self._resources = stack.pop_all()
        self._closed = False

    def _scratch_memory(self, size: int, resources: ExitStack) -> DeviceMemory:
        return resources.enter_context(closing(DeviceMemory(self._stream, max(size, 1), "the engines' scratch memory")))

    def _open(self, engine: GraphEngine[GraphSpec], scratch: DeviceMemory, resources: ExitStack) -> None:
        """Allocate and capture what runs an engine; `resources` frees it."""
        manifest = self._bundle.manifest
        capture = partial(engine.capture, scratch, self._stream)
        if isinstance(manifest, ContinuousManifest):
            self._continuous = CapturedContinuousRunner(engine.graph, engine.what, self._stream, capture)
            resources.enter_context(closing(self._continuous))
        else:
            block = manifest.blocks[engine.graph.block]
            runner = CapturedBlockRunner(engine, block, manifest.max_chunk, self._stream, capture)
            self._blocks[block.index] = resources.enter_context(closing(runner))

    def _open_unused(self, block: int) -> None:
        """Load a flow block that is to run after all; nothing changes if that fails."""
        self._stream.gpu.select()
        engine = self._build.of(block)
        with ExitStack() as stack:
            scratch = self._scratch
            if engine.scratch_bytes > scratch.size:  # it cannot grow: CUDA graphs keep its address
                scratch = self._scratch_memory(engine.scratch_bytes, stack)
            self._open(engine, scratch, stack)
            self._resources.enter_context(stack.pop_all())
        self._scratch = scratch
        self._unused.remove(block)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        gpu = self._stream.gpu
        gpu.release("cudaSetDevice", gpu.index)  # `release`, since after a failed kernel every call reports an error
        self._blocks.clear()
        self._continuous = None
        self._resources.close()

    def twin(self) -> "TensorrtBackend":
        return TensorrtBackend(self._engines.joined(), self._bundle, self.record, self._flavour, self._unused)

    def at_batch(self, bundle: Bundle) -> "TensorrtBackend":
        build = choose_build(bundle, self.variant.name, self._engines.resource.gpu)
        return TensorrtBackend(self._engines.joined(), bundle, *build, self._unused)

    def open_networks(self, on_onnxruntime: Callable[[], NetworkSessions]) -> TensorrtNetworks:
        return TensorrtNetworks(self._bundle, self._engines.resource.gpu, on_onnxruntime)

    def bandwidth_probe(self) -> CudaBandwidthProbe:
        """A probe of this GPU's memory, of which it needs 2 GiB."""
        return CudaBandwidthProbe(self._stream.gpu)

    def block_runner(self, block: int) -> CapturedBlockRunner:
        if block in self._unused and not self._closed:
            self._open_unused(block)
        if block not in self._blocks:
            raise BackendError(f"the backend was closed, or {self.record.target} has no engine for flow block {block}")
        return self._blocks[block]

    def continuous_runner(self) -> CapturedContinuousRunner:
        if self._continuous is None:
            raise BackendError(f"the backend was closed, or {self.record.target} has no engine for a velocity graph")
        return self._continuous


def open_tensorrt(
    bundle: Bundle, variant: str | None = None, device: int = 0, unused: Collection[int] = ()
) -> TensorrtBackend:
    """Open the engines of a bundle on a GPU; those of smaller batch sizes have to be there.

    Args:
        variant: Name of the variant whose engines run; None takes the first one built for this GPU.
        device: Number of the GPU, counted by CUDA from 0.
        unused: Flow blocks that are not going to run; one that does is loaded then.

    Raises:
        BackendError: there is no usable GPU, no build for it, no TensorRT for the build, or too little memory.
        BundleError: the engines are damaged, or belong to another bundle or another TensorRT.
        UsageError: there is no such GPU.
    """
    gpu = Gpu(device)
    record, flavour = choose_build(bundle, variant, gpu)
    for batch in bundle.manifest.batch_sizes[1:]:
        choose_build(bundle.at_batch(batch), record.variant, gpu)  # refused now, and not once images need it
    return TensorrtBackend(Shared(LoadedBuilds(gpu)), bundle, record, flavour, unused)
