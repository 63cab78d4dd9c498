"""A built engine on a GPU, and the CUDA graphs of its runs."""

import logging
import mmap
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from starflow.runtime.backends.cuda.capture import graph_or_repeated
from starflow.runtime.backends.cuda.device import (
    LOADING,
    CaptureRefusedError,
    DeviceMemory,
    Gpu,
    Graph,
    Repeated,
    Stream,
)
from starflow.runtime.backends.tensorrt.build import rebuild_advice
from starflow.runtime.backends.tensorrt.contract import check_engine, takes_no_condition
from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.backends.tensorrt.kernel_cache import KernelCache
from starflow.runtime.backends.tensorrt.messages import MessageLog
from starflow.runtime.bundle.build_record import BuildRecord, EngineSpec, Profile, check_engine_file
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec, fixed_shape
from starflow.runtime.bundle.network_spec import NetworkSpec
from starflow.runtime.plain.errors import BackendError, BundleError

logger = logging.getLogger(__name__)


class TensorrtRuntime:
    """An installed TensorRT on one GPU; BackendError if it does not start there."""

    def __init__(self, flavour: Flavour, gpu: Gpu) -> None:
        self.flavour, self.gpu = flavour, gpu
        self.log = MessageLog(flavour, "ERROR")
        try:
            self._runtime = flavour.trt.Runtime(self.log.logger)
        except TypeError:  # it gave no object: its libraries and the driver do not fit
            raise BackendError(
                f"{flavour.name} {flavour.version} does not start here ({self.log.last_error()}); "
                "`starflow doctor` says what to change"
            ) from None

    def deserialize(self, path: Path) -> Any:
        """The `trt.ICudaEngine` in a file, or None if TensorRT refuses it."""
        # Mapped, so that weights go from the file to the GPU without a full copy in host memory.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return self._runtime.deserialize_cuda_engine(content)


Spec = TypeVar("Spec", GraphSpec, NetworkSpec)


@dataclass(frozen=True)
class EngineSource(Generic[Spec]):
    """An engine file that is whole, and what it is the engine of."""

    path: Path
    graph: Spec
    what: str  # what messages call the graph, such as `flow block 3`
    profiles: tuple[Profile, ...]  # optimisation profiles, in order
    max_tokens: int  # of one run
    profile_for: Callable[[int], int]  # index of the profile for a number of tokens
    rebuild: str  # what mends an engine that cannot be used


def block_source(bundle: Bundle, record: BuildRecord, spec: EngineSpec) -> EngineSource[GraphSpec]:
    """The engine of a flow block; BundleError if it is missing, damaged or of another graph."""
    longest = bundle.manifest.longest_run(spec.block)
    return EngineSource(
        path=check_engine_file(bundle, record, spec),
        graph=bundle.graph(bundle.variant(record.variant, "portable"), spec.block),
        what=f"flow block {spec.block}",
        profiles=tuple(profile.within(longest) for profile in record.profiles),
        max_tokens=record.max_tokens,
        profile_for=record.profile_for,
        rebuild=rebuild_advice(bundle, record),
    )


class GraphEngine(Generic[Spec]):
    """The engine of one graph, deserialised and compared with the manifest.

    Raises:
        BundleError: the file is damaged, needs another TensorRT, or is not the engine of this graph.
        BackendError: the GPU has too little memory.
    """

    def __init__(self, runtime: TensorrtRuntime, source: EngineSource[Spec]) -> None:
        self._runtime = runtime
        self._source: EngineSource[Spec] = source
        self._path, self._rebuild = source.path, source.rebuild
        self.graph: Spec = source.graph
        self.what, self.max_tokens = source.what, source.max_tokens
        self.checked = False  # whether two steps of it have been looked at
        with LOADING:
            self._engine = self._load()
        trt = runtime.flavour.trt
        check_engine(trt, self._engine, self.graph, source.profiles, str(self._path), self._rebuild)
        # Whether steps take no condition tokens; if so, a prefill of one token runs in another profile.
        self.steps_lack_condition = any(takes_no_condition(self._engine, spec) for spec in self.graph.inputs)
        self.scratch_bytes: int = self._engine.device_memory_size_v2  # of a run besides its tensors, for any profile
        # Only RTX compiles kernels on the machine that runs them.
        self._cache = KernelCache(trt, self._engine, self._path) if hasattr(trt, "IRuntimeCache") else None

    def close(self) -> None:
        self._cache = self._engine = None

    def capture(
        self,
        scratch: DeviceMemory,
        stream: Stream,
        count: int,
        runs_at: Sequence[dict[str, int]],
        resources: ExitStack,
        feed_back: Callable[[], None] = lambda: None,
        *,
        conditioned: bool = True,
    ) -> Graph | Repeated:
        """Capture runs of S = `count` tokens, one after the other, as one CUDA graph.

        If the work cannot be captured, every launch enqueues it anew, and a warning of this module's logger says why.

        Args:
            scratch: Memory for values between inputs and outputs, at least `scratch_bytes`. Runs that share it must not overlap,
                so they share `stream`.
            runs_at: The address of every input and output, for each run.
            resources: Takes the graph and its execution contexts, and frees them.
            feed_back: Adds the copies that prepare the next launch.
            conditioned: Whether a run may hold positions of the condition; only of interest where `steps_lack_condition`.

        Raises:
            BackendError: TensorRT refuses to run.
            BundleError: the engine was not built for `count` tokens.
        """
        with LOADING:
            contexts = [self._context(count, addresses, scratch, stream, conditioned) for addresses in runs_at]
            # The contexts go when the work in the stream is over.
            resources.callback(lambda *_: stream.drain(), *contexts)

            def work() -> None:
                for context in contexts:
                    self.assert_done(context.execute_async_v3(stream.handle), "to run")
                feed_back()

            def captured_work() -> None:
                for context in contexts:
                    if not context.execute_async_v3(stream.handle):
                        raise CaptureRefusedError(self._runtime.log.last_error())
                feed_back()

            # The first run of a context at its profile and shapes compiles and allocates, which a capture must not. It writes
            # where captured runs will write.
            for context in contexts:
                self.assert_done(context.execute_async_v3(stream.handle), "to run")
            stream.synchronize()

            def record() -> Graph:
                for context in contexts:
                    if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(stream.handle):
                        raise CaptureRefusedError("TensorRT calls the stream not capturable")  # only RTX can tell
                return stream.capture(captured_work)

            tokens = f" of {count} tokens" if isinstance(self.graph, GraphSpec) else ""
            return graph_or_repeated(record, work, f"{self.what}: runs{tokens}", resources, logger)

    def _context(
        self, count: int, addresses: dict[str, int], scratch: DeviceMemory, stream: Stream, conditioned: bool
    ) -> Any:
        """A `trt.IExecutionContext` for runs of `count` tokens at fixed addresses."""
        profile = self._source.profile_for(count)
        if profile == 0 and conditioned and self.steps_lack_condition:
            profile = 1
        strategy = self._runtime.flavour.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(self._cache.config if self._cache else strategy)
        self.assert_done(context is not None, "to create an execution context")
        selected = context.set_optimization_profile_async(profile, stream.handle)
        self.assert_done(selected, f"optimisation profile {profile}")
        for spec in self.graph.inputs:
            if "S" in spec.shape:
                absent = spec.role == "condition" and profile == 0 and self.steps_lack_condition
                taken = context.set_input_shape(spec.name, fixed_shape(spec, 0 if absent else count))
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
            said = self._runtime.log.last_error()  # before another call has something to say
            free, total = self._runtime.gpu.memory()
            raise BackendError(
                f"{self.what}: TensorRT refuses {what} ({said}); {free:,} of {total:,} bytes of GPU memory are free"
            )

    def _load(self) -> Any:
        engine = self._runtime.deserialize(self._path)
        if engine is not None:
            return engine
        said = self._runtime.log.last_error()
        size = self._path.stat().st_size
        free, total = self._runtime.gpu.memory()
        if free < size:
            raise BackendError(
                f"{self._path}: needs at least {size:,} bytes of GPU memory, {free:,} of {total:,} are free; free some memory"
            )
        raise BundleError(f"{self._path}: {self._runtime.flavour.name} cannot load it ({said}); {self._rebuild}")
