"""ONNX Runtime sessions that are what was asked for: the manifest's graph, on the provider that was named."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime

from starflow.runtime.backends.base import Provider
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec, TensorSpec
from starflow.runtime.bundle.network_spec import NetworkSpec
from starflow.runtime.plain.errors import BackendError, BundleError, UsageError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
# Every provider leaves the nodes it does not take to the ones after it.
EXECUTION_PROVIDERS: dict[Provider, tuple[str, ...]] = {
    "cpu": (CPU,),
    "cuda": (CUDA, CPU),
    "tensorrt": ("TensorrtExecutionProvider", CUDA, CPU),
}
OPTIONS = {CUDA: {"use_tf32": "0"}}  # float32 is float32: its products with ten bits are off by 1e-3

# A worker waits awake for the next operator or step. ONNX Runtime's own 40 ms reach into the steps of the next flow block,
# whose session has workers of its own, and take the core from them: measured in docs/performance.md.
SPIN_MICROSECONDS = 1000


def check_provider(name: str) -> Provider:
    """The provider called `name`.

    Raises:
        UsageError: there is none.
        BackendError: the installed onnxruntime was built without it.
    """
    provider = next((known for known in get_args(Provider) if known == name), None)
    if provider is None:
        raise UsageError(f"provider {name!r} is not known; choose {', '.join(EXECUTION_PROVIDERS)}")
    if EXECUTION_PROVIDERS[provider][0] not in onnxruntime.get_available_providers():
        raise BackendError(
            f"this onnxruntime has no {EXECUTION_PROVIDERS[provider][0]}; "
            "put the GPU build in its place: pip uninstall onnxruntime; pip install onnxruntime-gpu"
        )
    if provider != "cpu":
        onnxruntime.preload_dlls()  # CUDA's libraries where pip put them; they need not be on the loader's path
    return provider


def numpy_dtype(spec: TensorSpec) -> np.dtype:
    """NumPy's type of a tensor of the manifest."""
    if spec.dtype == "bfloat16":
        raise BackendError(f"{spec.name} is bfloat16, which this backend cannot compute; use another variant")
    return np.dtype(spec.dtype)


def open_session(
    bundle: Bundle,
    graph: GraphSpec | NetworkSpec,
    provider: Provider,
    threads: int,
    profile: Path | None = None,
    *,
    lean: bool = False,
) -> onnxruntime.InferenceSession:
    """Load a graph.

    Args:
        bundle: The bundle.
        graph: One of its graphs.
        provider: What has to run it.
        threads: Threads within an operator on the CPU; 0 leaves the choice to ONNX Runtime (one per physical core).
        profile: Where ONNX Runtime's profiler writes when the session is gone: a path to which it adds the time of day.
        lean: Leave weights as they are stored, neither widened nor laid out anew: opens sooner in less memory, runs slower.

    Raises:
        BundleError: the graph does not load, or is not the one the manifest describes.
        BackendError: ONNX Runtime fell back from the provider that was asked for.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    options.log_severity_level = 3
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    disabled = []
    if lean:
        options.add_session_config_entry("session.disable_prepacking", "1")
        disabled = ["ConstantFolding"]
    path = bundle.root / graph.file.path
    wanted = EXECUTION_PROVIDERS[provider]
    providers = [(name, OPTIONS.get(name, {})) for name in wanted]
    try:
        # Without `enable_fallback` ONNX Runtime would print on stdout and go on with the CPU.
        session = onnxruntime.InferenceSession(
            path, options, providers=providers, enable_fallback=False, disabled_optimizers=disabled
        )
    except Exception as error:  # ONNX Runtime raises a dozen types for one thing: it cannot load this graph
        reason = f"{path}: ONNX Runtime cannot load it ({_first_line(error)})"
        if provider != "cpu":
            raise BackendError(f"{reason} on {wanted[0]}; `starflow doctor` says what is missing") from None
        raise BundleError(f"{reason}; export the bundle again") from None
    if session.get_providers()[0] != wanted[0]:
        raise BackendError(
            f"asked ONNX Runtime for {wanted[0]}, got {session.get_providers()[0]}: its libraries did not load; "
            "`starflow doctor` says what is missing"
        )
    _compare(path.name, "inputs", graph.inputs, session.get_inputs())
    _compare(path.name, "outputs", graph.outputs, session.get_outputs())
    return session


def input_memory(session: onnxruntime.InferenceSession, device: str) -> dict[str, str]:
    """Where a session reads each input: `device`, or `cpu` for what its provider leaves to the host.

    A buffer has to lie there. A binding copies what lies elsewhere when it is bound, once: later changes would be lost.
    """
    places = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    return {value.name: device if place.name.lower() == device else "cpu" for value, place in places}


def _compare(name: str, what: str, specs: Sequence[TensorSpec], found: Sequence[onnxruntime.NodeArg]) -> None:
    """The graph on disk must be the one the manifest describes."""
    expected = [f"{spec.name}{list(spec.shape)}" for spec in specs]
    actual = [f"{value.name}{value.shape}" for value in found]
    for one, other in zip_longest(expected, actual, fillvalue="nothing"):
        if one != other:
            raise BundleError(f"{name}: among its {what} is {other}, the manifest says {one}; export the bundle again")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
