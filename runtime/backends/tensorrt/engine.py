"""A built engine on a GPU, and the CUDA graphs of its runs."""

import mmap
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from starflow.runtime.backends.cuda.buffers import GraphBuffers
from starflow.runtime.backends.cuda.device import DeviceMemory, Gpu, Graph, Stream
from starflow.runtime.backends.tensorrt.build import rebuild_advice
from starflow.runtime.backends.tensorrt.contract import check_engine
from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.backends.tensorrt.kernel_cache import KernelCache
from starflow.runtime.backends.tensorrt.messages import MessageLog
from starflow.runtime.bundle.build_record import BuildRecord, EngineSpec, check_engine_file
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import fixed_shape
from starflow.runtime.plain.errors import BackendError, BundleError


class TensorrtRuntime:
    """An installed TensorRT on one GPU."""

    def __init__(self, flavour: Flavour, gpu: Gpu) -> None:
        self.flavour, self.gpu = flavour, gpu
        self.log = MessageLog(flavour, "ERROR")
        self._runtime = flavour.trt.Runtime(self.log.logger)

    def deserialize(self, path: Path) -> Any:
        """The `trt.ICudaEngine` in a file, or None if TensorRT refuses it."""
        # Mapped, so that weights go from the file to the GPU without a full copy in host memory.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return self._runtime.deserialize_cuda_engine(content)


class GraphEngine:
    """The engine of one graph, deserialised and compared with the manifest.

    Raises:
        BundleError: the file is missing or damaged, needs another TensorRT, or is not the engine of this graph.
        BackendError: the GPU has too little memory.
    """

    def __init__(self, runtime: TensorrtRuntime, bundle: Bundle, record: BuildRecord, spec: EngineSpec) -> None:
        self._runtime, self._record = runtime, record
        self._path, self._rebuild = check_engine_file(bundle, record, spec), rebuild_advice(bundle, record)
        self.graph = bundle.graph(bundle.variant(record.variant, "portable"), spec.block)
        self.max_tokens = record.max_tokens  # of one run
        self._engine = self._load()
        trt = runtime.flavour.trt
        longest = bundle.manifest.longest_run(spec.block)
        profiles = [profile.within(longest) for profile in record.profiles]
        check_engine(trt, self._engine, self.graph, profiles, str(self._path), self._rebuild)
        self.scratch_bytes: int = self._engine.device_memory_size_v2  # of a run besides its tensors, for any profile
        # Only RTX compiles kernels on the machine that runs them.
        self._cache = KernelCache(trt, self._engine, self._path) if hasattr(trt, "IRuntimeCache") else None

    def close(self) -> None:
        self._cache = self._engine = None

    def capture(
        self,
        count: int,
        buffers: GraphBuffers,
        scratch: DeviceMemory,
        stream: Stream,
        feed_back: Callable[[], None],
        resources: ExitStack,
    ) -> Graph:
        """Capture a run of S = `count` tokens as a CUDA graph.

        Args:
            buffers: Every input and output.
            scratch: At least `scratch_bytes`; runs that share it must not overlap.
            feed_back: Adds the copies that prepare the next run.
            resources: Takes the graph and its execution context, and frees them.

        Raises:
            BackendError: TensorRT refuses.
            BundleError: the engine was not built for `count` tokens.
        """
        context = self._context(count, buffers.addresses(), scratch, stream)
        # The context goes when the work in the stream is over.
        resources.callback(lambda _: stream.drain(), context)

        def enqueue() -> None:
            self.assert_done(context.execute_async_v3(stream.handle), "to run")

        def work() -> None:
            enqueue()
            feed_back()

        # The first run compiles and allocates, which a capture must not. It writes where captured runs will write.
        enqueue()
        stream.synchronize()
        if hasattr(context, "is_stream_capturable"):  # only RTX can tell
            self.assert_done(context.is_stream_capturable(stream.handle), "to be captured into a CUDA graph")
        return resources.enter_context(closing(stream.capture(work)))

    def _context(self, count: int, addresses: dict[str, int], scratch: DeviceMemory, stream: Stream) -> Any:
        """A `trt.IExecutionContext` for runs of `count` tokens at fixed addresses."""
        profile = self._record.profile_for(count)
        strategy = self._runtime.flavour.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(self._cache.config if self._cache else strategy)
        self.assert_done(context is not None, "to create an execution context")
        selected = context.set_optimization_profile_async(profile, stream.handle)
        self.assert_done(selected, f"optimisation profile {profile}")
        for spec in self.graph.inputs:
            if "S" in spec.shape:
                taken = context.set_input_shape(spec.name, fixed_shape(spec, count))
                self.assert_done(taken, f"{spec.name} of {count} tokens")
        for name, address in addresses.items():
            self.assert_done(context.set_tensor_address(name, address), f"the address of {name}")
        context.set_device_memory(scratch.address, scratch.size)
        return context

    def save_cache(self) -> None:
        """Keep the kernels compiled on this machine for the next start."""
        if self._cache:
            self._cache.save()

    def assert_done(self, done: bool, what: str) -> None:
        """Raise BackendError, with the reason TensorRT gave, if it refused something."""
        if not done:
            free, total = self._runtime.gpu.memory()
            raise BackendError(
                f"flow block {self.graph.block}: TensorRT refuses {what} ({self._runtime.log.last_error()}); "
                f"{free:,} of {total:,} bytes of GPU memory are free"
            )

    def _load(self) -> Any:
        engine = self._runtime.deserialize(self._path)
        if engine is not None:
            return engine
        size = self._path.stat().st_size
        free, total = self._runtime.gpu.memory()
        if free < size:
            raise BackendError(
                f"{self._path}: needs at least {size:,} bytes of GPU memory, {free:,} of {total:,} are free; free some memory"
            )
        raise BundleError(
            f"{self._path}: {self._runtime.flavour.name} cannot load it ({self._runtime.log.last_error()}); {self._rebuild}"
        )
