"""ONNX Runtime sessions and tensors. A session runs the graph the manifest describes on the provider that was named, or not at all."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import get_args

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike

from starflow.runtime.backends.base import Provider
from starflow.runtime.backends.onnxruntime.provider_problem import CUDA, TENSORRT, load_libraries, provider_problem
from starflow.runtime.backends.onnxruntime.thread_choice import LARGE_WEIGHTS
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec, TensorSpec, fixed_shape
from starflow.runtime.bundle.network_spec import NetworkSpec
from starflow.runtime.plain import telemetry
from starflow.runtime.plain.errors import BackendError, BundleError, StarflowError, UsageError, first_line
from starflow.runtime.plain.install_hint import REPLACE_BY_GPU_BUILD

telemetry.silence(onnxruntime)
onnxruntime.set_default_logger_severity(4)  # as of sessions, below: allocators print by this logger, in colours

CPU = "CPUExecutionProvider"
# Each provider leaves the nodes it cannot run to the next one.
EXECUTION_PROVIDERS: dict[Provider, tuple[str, ...]] = {
    "cpu": (CPU,),
    "cuda": (CUDA, CPU),
    "tensorrt": (TENSORRT, CUDA, CPU),
}
OPTIONS = {CUDA: {"use_tf32": "0"}}  # TF32 would compute float32 products with ten bits, an error of 1e-3

# How long a worker thread spins while it waits for the next operator or step, of a small graph and of a large one. ONNX Runtime's
# default of 40 ms lasts into the steps of the next flow block and takes cores from the workers of its session. Operators of a
# large graph that no worker helps with take longer than the short time: measured in docs/performance.md.
SPIN_MICROSECONDS, LARGE_SPIN_MICROSECONDS = 300, 1000
MOST_REASON = 200  # characters of what ONNX Runtime says is wrong


def spin_microseconds(weight_bytes: int) -> int:
    """How long workers of a graph that reads so many bytes of weights spin."""
    return LARGE_SPIN_MICROSECONDS if weight_bytes > LARGE_WEIGHTS else SPIN_MICROSECONDS


def check_provider(name: str) -> Provider:
    """The provider called `name`.

    Raises:
        UsageError: there is no such provider.
        BackendError: the installed onnxruntime was built without it, or a library or a driver that it needs is missing or too old.
    """
    provider = next((known for known in get_args(Provider) if known == name), None)
    if provider is None:
        raise UsageError(f"provider {name!r} is not known; choose {', '.join(EXECUTION_PROVIDERS)}")
    wanted = EXECUTION_PROVIDERS[provider][0]
    if wanted not in onnxruntime.get_available_providers():
        raise BackendError(
            f"the installed onnxruntime has no {wanted}; replace it with the GPU build: {REPLACE_BY_GPU_BUILD}"
        )
    if provider != "cpu":
        load_libraries(wanted)
        if problem := provider_problem(wanted):
            raise BackendError(f"{wanted} does not work here: {problem}")
    return provider


def numpy_dtype(spec: TensorSpec) -> np.dtype:
    """The NumPy type of a tensor; BackendError if it is bfloat16, which NumPy does not have."""
    if spec.dtype == "bfloat16":
        raise BackendError(f"{spec.name} is bfloat16, which this backend cannot compute; use another variant")
    return np.dtype(spec.dtype)


def zeros(spec: TensorSpec, device: str, count: int = 1) -> onnxruntime.OrtValue:
    """A tensor of zeros for runs of `count` tokens, in the memory of a device."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(fixed_shape(spec, count), numpy_dtype(spec)), device, 0)


def fill(target: onnxruntime.OrtValue, spec: TensorSpec, value: ArrayLike) -> None:
    """Copy a value into a tensor, broadcasting."""
    target.update_inplace(np.ascontiguousarray(np.broadcast_to(value, target.shape()), numpy_dtype(spec)))


@dataclass(frozen=True)
class OnDevice:
    """What makes a session's runs on a GPU capturable into a CUDA graph: fixed sizes, and a stream of the caller.

    Attributes:
        stream: Handle of the stream that runs go into.
        sizes: Sizes by their names in the graph, such as S. With all of them fixed, nothing is left for the host to compute.
        weights: By name, weights that lie on the device; they must live as long as the session.
    """

    stream: int
    sizes: Mapping[str, int]
    weights: Mapping[str, onnxruntime.OrtValue]


def open_session(
    bundle: Bundle,
    graph: GraphSpec | NetworkSpec,
    provider: Provider,
    threads: int,
    profile: Path | None = None,
    *,
    lean: bool = False,
    on_device: OnDevice | None = None,
) -> onnxruntime.InferenceSession:
    """Load a graph.

    Args:
        provider: The execution provider that must run it.
        threads: Number of threads within an operator on the CPU; 0 lets ONNX Runtime choose (one per physical core).
        profile: Path prefix of the file that ONNX Runtime's profiler writes when the session ends; it appends the time of day.
        lean: Keep weights as they are stored, without widening or repacking them. The session then opens faster and needs less
            memory, but runs more slowly.
        on_device: For the provider `cuda`: what makes its runs capturable.

    Raises:
        BundleError: the graph does not load, is not the one the manifest describes, or was changed after the bundle was opened.
        BackendError: ONNX Runtime fell back to another provider.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_microseconds(graph.weight_bytes)))
    options.log_severity_level = 4  # what it reports as an error it also raises
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    disabled = []
    if lean:
        options.add_session_config_entry("session.disable_prepacking", "1")
        disabled = ["ConstantFolding"]
    wanted = EXECUTION_PROVIDERS[provider]
    given: dict[str, str] = {}
    if on_device:
        given = {"user_compute_stream": str(on_device.stream)}
        for name, size in on_device.sizes.items():
            options.add_free_dimension_override_by_name(name, size)
        for name, value in on_device.weights.items():
            options.add_initializer(name, value)
    providers = [(name, OPTIONS.get(name, {}) | (given if name == CUDA else {})) for name in wanted]

    def load(path: Path) -> onnxruntime.InferenceSession:
        # Without `enable_fallback` ONNX Runtime would print on stdout and go on with the CPU.
        return onnxruntime.InferenceSession(
            path, options, providers=providers, enable_fallback=False, disabled_optimizers=disabled
        )

    try:
        session = bundle.load(graph, load)
    except (StarflowError, MemoryError):
        raise
    except Exception as error:  # ONNX Runtime raises a dozen types, all of which mean that it cannot load this graph
        reason = f"{bundle.root / graph.file.path}: ONNX Runtime cannot load it ({first_line(error)[:MOST_REASON]})"
        if provider != "cpu":
            raise BackendError(f"{reason} on {wanted[0]}; `starflow doctor` says what is missing") from error
        raise BundleError(f"{reason}; export the bundle again") from error
    if session.get_providers()[0] != wanted[0]:
        raise BackendError(
            f"ONNX Runtime fell back from {wanted[0]} to {session.get_providers()[0]}: its libraries did not load; "
            "`starflow doctor` says what is missing"
        )
    name = PurePosixPath(graph.file.path).name
    fixed = on_device.sizes.values() if on_device else ()
    _compare(name, "inputs", graph.inputs, session.get_inputs(), fixed)
    _compare(name, "outputs", graph.outputs, session.get_outputs(), fixed)
    return session


@contextmanager
def runs(graph: GraphSpec | NetworkSpec) -> Iterator[None]:
    """What ONNX Runtime raises in runs of a graph, in one line.

    Raises:
        BackendError: a run failed: an index in the graph led out of a tensor, or memory did not suffice.
    """
    try:
        yield
    except (StarflowError, MemoryError):
        raise
    except Exception as error:  # a dozen types
        raise BackendError(
            f"{PurePosixPath(graph.file.path).name}: ONNX Runtime cannot run it ({first_line(error)[:MOST_REASON]})"
        ) from error


def input_memory(session: onnxruntime.InferenceSession, device: str) -> dict[str, str]:
    """Where a session reads each input: `device`, or `cpu` for inputs that its provider leaves to the host.

    A buffer must lie there: a binding copies a buffer that lies elsewhere once, when it is bound, and misses later changes.
    """
    places = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    return {value.name: device if place.name.lower() == device else "cpu" for value, place in places}


def _compare(
    name: str, what: str, specs: Sequence[TensorSpec], found: Sequence[onnxruntime.NodeArg], fixed: Collection[int]
) -> None:
    """See that the graph on disk is the one the manifest describes. A dynamic size may have any name, or be one of `fixed`."""

    def shape_of(value: onnxruntime.NodeArg) -> list[int | str]:
        dynamic = next((spec.shape for spec in specs if spec.name == value.name), ())
        sizes = zip_longest(value.shape, dynamic)
        return ["S" if isinstance(size, str) or (named == "S" and size in fixed) else size for size, named in sizes]

    expected = [f"{spec.name}{list(spec.shape)}" for spec in specs]
    actual = [f"{value.name}{shape_of(value)}" for value in found]
    for one, other in zip_longest(expected, actual, fillvalue="nothing"):
        if one != other:
            raise BundleError(
                f"{name}: found {other} among its {what}, the manifest says {one}; export the bundle again"
            )
