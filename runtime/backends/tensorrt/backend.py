"""TensorRT on a GPU: every buffer allocated once, one CUDA graph per number of tokens, replayed step by step.

A step feeds the next one on the device, so a block's whole loop is launches of one graph: no copy from the host and no waiting
until its sequence is read.
"""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.block_runner import SequenceRunner
from starflow.runtime.backends.cuda.bandwidth import CudaBandwidthProbe
from starflow.runtime.backends.cuda.buffers import StepBuffers
from starflow.runtime.backends.cuda.device import DeviceMemory, Gpu, Graph, Stream
from starflow.runtime.backends.tensorrt.build import choose_build, rebuild_advice
from starflow.runtime.backends.tensorrt.continuous_runner import TensorrtVelocityRunner
from starflow.runtime.backends.tensorrt.engine import BlockEngine, TensorrtRuntime
from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.bundle.build_record import BuildRecord
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.bundle.manifest import Block
from starflow.runtime.bundle.manifest_file import AnyManifest
from starflow.runtime.plain.errors import BackendError, BundleError


class TensorrtBlockRunner(SequenceRunner):
    """One flow block on the device.

    Args:
        engine: The block's engine.
        block: The block.
        max_chunk: Most tokens of one run, by the manifest; prefill keeps to the engine's limit as well.
        scratch: Memory for what lies between a run's inputs and outputs. Those who share it share `stream`, which keeps their
            runs apart.
        stream: Where everything runs.
    """

    def __init__(
        self, engine: BlockEngine, block: Block, max_chunk: int, scratch: DeviceMemory, stream: Stream
    ) -> None:
        super().__init__(block, engine.graph, min(max_chunk, engine.max_tokens))
        self._engine, self._scratch, self._stream = engine, scratch, stream
        self._batch = next(int(spec.shape[0]) for spec in engine.graph.inputs if spec.name == "previous")
        self._graphs: dict[int, Graph] = {}
        self._at = 0
        with ExitStack() as self._resources:
            self._buffers = self._resources.enter_context(closing(StepBuffers(stream, engine.graph, max_chunk)))
            self._graph(1)
            self.clear()  # capturing wrote into the caches
            self._resources = self._resources.pop_all()

    def close(self) -> None:
        self._graphs.clear()
        self._resources.close()

    def store(self, name: str, value: NDArray | np.float32, count: int = 1) -> None:
        self._stream.gpu.select()
        self._buffers[name].store(value, count)

    def fetch(self, name: str, count: int = 1) -> NDArray:
        self._stream.gpu.select()
        return self._buffers[name].fetch(count)

    def run(self, count: int) -> None:
        self._stream.gpu.select()
        self._graph(count).launch()
        if count == 1:  # its graph moved on
            self.seek(self._at)

    def seek(self, position: int) -> None:
        self._at = position
        self.store("position", np.array([position]))

    def tell(self) -> int:
        return self._at

    def advance(self, steps: int) -> None:
        self._stream.gpu.select()
        self._graph(1).launch(steps)
        self._at += steps

    def run_schedule(self, start: int, first: NDArray, tokens: NDArray, schedule: Sequence[tuple[int, int]]) -> None:
        """A whole chunk, pass after pass, is launches of one graph; a window's passes move, and go through the host."""
        count = tokens.shape[1]
        if any(tokens_of_pass != (0, count) for tokens_of_pass in schedule):
            super().run_schedule(start, first, tokens, schedule)
            return
        if self._at != start:
            self.seek(start)
        self.store("previous", np.concatenate([first, tokens[:, :-1]], axis=1), count)
        self._graph(count).launch(len(schedule))
        tokens[...] = self.fetch("x", count)

    def clear(self) -> None:
        self._stream.gpu.select()
        for memory in self._buffers.caches():
            self._stream.zero(memory)

    @property
    def kernels_per_step(self) -> int:
        """How many kernels decode one token."""
        return self._graph(1).kernels

    def _graph(self, count: int) -> Graph:
        if count not in self._graphs:
            self._graphs[count] = self._capture(count)
        return self._graphs[count]

    def _capture(self, count: int) -> Graph:
        """Record a run of `count` tokens, with what makes the next run the next step or, of several, the next pass."""
        execution = self._engine.execution(count, self._buffers.addresses(), self._scratch, self._stream)
        self._resources.callback(execution.close)
        # The first run compiles and allocates, which a capture must not. It writes where the run it stands for will write.
        execution.enqueue()
        self._stream.synchronize()
        execution.assert_capturable()

        def work() -> None:
            execution.enqueue()
            if count == 1:
                self._feed_back("previous", "x")
                self._feed_back("position", "position_next")
            else:
                self._feed_tokens(count)

        return self._resources.enter_context(closing(self._stream.capture(work)))

    def _feed_back(self, target: str, source: str) -> None:
        into, out_of = self._buffers[target], self._buffers[source]
        self._stream.copy(into.memory, out_of.memory, into.size(1))

    def _feed_tokens(self, count: int) -> None:
        """Every token of x but the last of each image becomes the one before the next: previous[:, 1:] = x[:, :-1]."""
        into, out_of = self._buffers["previous"], self._buffers["x"]
        whole = into.size(count)
        token = into.size(1) // self._batch
        for image in range(0, whole, token * count):
            self._stream.copy(
                into.memory, out_of.memory, token * (count - 1), target_offset=image + token, source_offset=image
            )


class TensorrtBackend:
    """Engines of one build on one GPU. Everything is loaded, allocated and captured when it is made.

    A backend serves one thread at a time; any number of them may stand side by side.

    Args:
        bundle: An open bundle.
        record: The build.
        flavour: An installed TensorRT of the build's flavour.
        gpu: The GPU.

    Attributes:
        name: `tensorrt`.
        variant: The variant that was built.
        record: The build.
        device_name: What NVIDIA calls the GPU.

    Raises:
        BundleError: an engine is damaged, of another TensorRT, or not of its block's graph.
        BackendError: the GPU has too little memory, or TensorRT refuses to run there.
    """

    name = "tensorrt"

    def __init__(self, bundle: Bundle, record: BuildRecord, flavour: Flavour, gpu: Gpu) -> None:
        self.variant = bundle.variant(record.variant, "portable")
        self.record, self.device_name = record, gpu.name
        manifest = bundle.manifest
        missing = {graph.block for graph in self.variant.graphs} - {spec.block for spec in record.engines}
        if missing:
            raise BundleError(
                f"{bundle.root}: the build {record.target} of {record.variant} has no engine of flow block {min(missing)}; "
                f"{rebuild_advice(bundle, record)}"
            )
        gpu.select()
        with ExitStack() as stack:
            self._stream = stack.enter_context(closing(Stream(gpu)))
            runtime = TensorrtRuntime(flavour, gpu)
            self._engines = [
                stack.enter_context(closing(BlockEngine(runtime, bundle, record, spec))) for spec in record.engines
            ]
            # Runs never overlap, so the largest need serves all. CUDA graphs keep its address: it must not grow later.
            size = max(engine.scratch_bytes for engine in self._engines)
            scratch = stack.enter_context(
                closing(DeviceMemory(self._stream, max(size, 1), "the engines' scratch memory"))
            )
            self._runners: dict[int, TensorrtBlockRunner | TensorrtVelocityRunner] = {}
            for engine in self._engines:
                runner = _runner(manifest, engine, scratch, self._stream)
                self._runners[engine.graph.block] = stack.enter_context(closing(runner))
            self._resources = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._runners:
            return
        gpu = self._stream.gpu
        gpu.release("cudaSetDevice", gpu.index)  # even where a failed kernel makes every call report an error
        self._runners.clear()
        with self._resources:
            for engine in self._engines:
                engine.save_cache()

    def bandwidth_probe(self) -> CudaBandwidthProbe:
        """A probe of this GPU's memory; it needs 2 GiB of it."""
        return CudaBandwidthProbe(self._stream.gpu)

    def runner(self, block: int) -> TensorrtBlockRunner:
        runner = self._runners.get(block)
        if not isinstance(runner, TensorrtBlockRunner):
            raise BackendError(f"the sampler was closed, or {self.record.target} has no engine of flow block {block}")
        return runner

    def velocity_runner(self) -> TensorrtVelocityRunner:
        runner = self._runners.get(0)
        if not isinstance(runner, TensorrtVelocityRunner):
            raise BackendError(f"the sampler was closed, or {self.record.target} has no engine of a velocity graph")
        return runner


def _runner(
    manifest: AnyManifest, engine: BlockEngine, scratch: DeviceMemory, stream: Stream
) -> TensorrtBlockRunner | TensorrtVelocityRunner:
    if isinstance(manifest, ContinuousManifest):
        return TensorrtVelocityRunner(engine, scratch, stream)
    return TensorrtBlockRunner(engine, manifest.blocks[engine.graph.block], manifest.max_chunk, scratch, stream)


def open_tensorrt(bundle: Bundle, variant: str | None = None, device: int = 0) -> TensorrtBackend:
    """Run a bundle's engines on a GPU.

    Args:
        bundle: An open bundle.
        variant: Name of the variant whose engines to run; None takes the first one built for this GPU.
        device: Which GPU, as CUDA counts them.

    Raises:
        BackendError: there is no usable GPU, no build for it, no TensorRT for the build, or too little memory; the message
            says what to do.
        BundleError: the engines are damaged or do not belong to this bundle or this TensorRT.
        UsageError: there is no such GPU.
    """
    gpu = Gpu(device)
    record, flavour = choose_build(bundle, variant, gpu)
    return TensorrtBackend(bundle, record, flavour, gpu)
