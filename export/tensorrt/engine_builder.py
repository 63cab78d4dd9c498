"""From a parsed graph to an engine on disk."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from starflow.export.onnx_graph.tensor_roles import CONDITION_TOKENS
from starflow.export.tensorrt.build_monitor import BuildMonitor
from starflow.export.tensorrt.parse import ParsedGraph
from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.backends.tensorrt.messages import MessageLog
from starflow.runtime.bundle.build_record import Profile, TargetConfig
from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.errors import ExportError
from starflow.runtime.plain.progress import Report, no_report

# What TensorRT says (a part of it), and what to do about it.
ADVICE = {
    r"within workspace limit|requires workspace memory": "give it more with --workspace",
    r"out of memory|OutOfMemory|bad_alloc": "free some memory or build on a larger machine",
}


def build_engine(
    parsed: ParsedGraph,
    config: TargetConfig,
    profiles: Sequence[Profile],
    destination: Path,
    report: Report = no_report,
    *,
    list_layers: bool = False,
) -> None:
    """Build the engine of a parsed graph into a file, which appears whole or not at all.

    Ctrl-C and SIGTERM end the build at TensorRT's next step, and leave as KeyboardInterrupt.

    Args:
        profiles: Optimisation profiles of a step graph; none for a graph of static shapes.
        destination: The engine file; one that exists is replaced.
        report: Told how far the build is, in `PARTS`.
        list_layers: Whether TensorRT describes the layers of the engine, in its most verbose messages and in the engine.

    Raises:
        ExportError: TensorRT cannot build it, memory or disk ran out.
    """
    monitor = BuildMonitor(parsed.flavour, report)
    _allow_decomposition(parsed)
    settings = _settings(parsed, config, profiles)
    settings.progress_monitor = monitor.interface
    if list_layers:
        settings.profiling_verbosity = parsed.flavour.trt.ProfilingVerbosity.DETAILED
    cache = destination.parent.parent / "timing.cache"
    with _timing_cache(parsed.flavour, cache, settings), atomic_file(destination) as temporary:
        try:
            with temporary.open("wb") as file:
                writer = _engine_writer(parsed.flavour, file)
                built = _build(parsed, settings, writer, monitor)
        except OSError as error:  # closing is the last chance to learn of a full disk
            writer.error = writer.error or error
        if writer.error:
            raise ExportError(f"{destination}: cannot be written ({writer.error.strerror}); free some space") from None
        if not built or not begins_like_engine(parsed.flavour, temporary):
            raise ExportError(_failure(parsed))


def _build(parsed: ParsedGraph, settings: Any, writer: Any, monitor: BuildMonitor) -> bool:
    """Run the builder in a thread of its own, so that this one hears signals meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        # A signal may come at any point, also between the start of a thread and the note that it has to be waited for; so
        # the thread stands before it has anything to do.
        thread.submit(int).result()
        build = parsed.builder.build_serialized_network_to_stream
        try:
            return bool(thread.submit(build, parsed.network, settings, writer).result())
        except BaseException:
            monitor.cancel()  # leaving the context waits for the builder
            raise


def _allow_decomposition(parsed: ParsedGraph) -> None:
    """Let TensorRT compute attention in several kernels where it has no fused one, which would be an error otherwise.

    It has none for a single row and token (a step of batch 1), for a single head, and for float32; where it has one, it takes
    that one.
    """
    trt = parsed.flavour.trt
    for index in range(parsed.network.num_layers):
        layer = parsed.network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # the network hands out layers as their base class
            layer.attention.decomposable = True


def _settings(parsed: ParsedGraph, config: TargetConfig, profiles: Sequence[Profile]) -> Any:
    trt = parsed.flavour.trt
    settings = parsed.builder.create_builder_config()
    settings.clear_flag(trt.BuilderFlag.TF32)  # a graph's types say what is computed in, and float32 is not TF32
    # One stream: with a second one, a chunk of a wide block takes 15 kernels a layer in place of 11, and they wait for each other.
    settings.max_aux_streams = 0
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # Memory comes from the runtime, none is allocated while an engine runs: RTX demands it for CUDA graph capture.
        settings.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if parsed.flavour.named_capabilities:
        settings.num_compute_capabilities = len(config.compute_capabilities)
        for index, capability in enumerate(config.compute_capabilities):
            named = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}")
            settings.set_compute_capability(named, index)
    if config.options.workspace_bytes is not None:
        settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.options.workspace_bytes)
    if config.options.optimization_level is not None:
        settings.builder_optimization_level = config.options.optimization_level
    for index, profile in enumerate(profiles):
        # The first profile is that of steps. A prefill of one token can use another profile, where there is one.
        without_condition = index == 0 and len(profiles) > 1
        settings.add_optimization_profile(_ranges(parsed, profile, without_condition))
    return settings


def _ranges(parsed: ParsedGraph, profile: Profile, without_condition: bool) -> Any:
    """The shapes of all inputs that have the number of tokens S, or that of condition tokens M: S as well, or none."""
    ranges = parsed.builder.create_optimization_profile()
    for index in range(parsed.network.num_inputs):
        tensor = parsed.network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 in shape:
            counts = (profile.minimum, profile.optimum, profile.maximum)
            if without_condition and tensor.get_dimension_name(shape.index(-1)) == CONDITION_TOKENS:
                counts = (0, 0, 0)
            ranges.set_shape(tensor.name, *([count if size == -1 else size for size in shape] for count in counts))
    return ranges


def _failure(parsed: ParsedGraph) -> str:
    said = parsed.log.last_error()
    advice = next((mend for pattern, mend in ADVICE.items() if re.search(pattern, said)), None)
    return f"{parsed.place}: {parsed.flavour.name} cannot build it: {said[:300]}" + (f"; {advice}" if advice else "")


def _engine_writer(flavour: Flavour, file: BinaryIO) -> Any:
    """A `trt.IStreamWriter` that writes an engine into an open file; it must outlive the build.

    TensorRT takes no notice of a write that fails and calls the build a success, so the failure is kept in the writer's `error`,
    which is None otherwise. After an error nothing more is written.
    """

    # A subclass of this flavour's own class, so it cannot exist before a flavour is chosen.
    class EngineWriter(flavour.trt.IStreamWriter):  # type: ignore[name-defined]
        error: OSError | None = None

        def write(self, data: bytes) -> int:
            if self.error is None:
                try:
                    return file.write(data)
                except OSError as error:
                    self.error = error
            return 0

    return EngineWriter()


@contextmanager
def _timing_cache(flavour: Flavour, path: Path, settings: Any) -> Iterator[None]:
    """Let a builder configuration use the timing cache at `path`, and keep what a build has measured.

    A flavour that builds for named compute capabilities does so without a GPU and measures nothing: it has no cache.
    """
    if flavour.named_capabilities:
        yield
        return
    cache = settings.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if not cache or not settings.set_timing_cache(cache, False):  # damaged, or of another GPU or release
        cache = settings.create_timing_cache(b"")
        settings.set_timing_cache(cache, False)
    yield
    with atomic_file(path) as temporary:
        temporary.write_bytes(cache.serialize())


def begins_like_engine(flavour: Flavour, path: Path) -> bool:
    """Whether a file begins like an engine of a flavour.

    Only `tensorrt_rtx` can be asked; of the other flavour any content will do. Without a driver it finds a foreign or
    damaged beginning (`MALFORMED_ENGINE`) and a file too short for a header, but calls every other engine invalid because there is
    no GPU; and an engine may well be for another GPU than this machine's. So nothing but a malformed header counts. Damage
    further on shows in the digest.
    """
    trt = flavour.trt
    if not hasattr(trt.Runtime, "get_engine_validity"):
        return path.stat().st_size > 0
    log = MessageLog(flavour)
    runtime = trt.Runtime(log.logger)
    with path.open("rb") as file:
        header = file.read(runtime.engine_header_size)
    _, diagnostics = runtime.get_engine_validity(header)
    return not diagnostics & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
