"""The backends there are, and which of them runs a bundle. Adding a backend is a name and a row here."""

from collections.abc import Callable, Collection
from typing import Literal, get_args

from starflow.runtime.backends.base import Backend, NetworkSessions
from starflow.runtime.backends.fastest_variant import fastest_variant
from starflow.runtime.bundle.build_record import read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.plain.errors import BackendError, UsageError
from starflow.runtime.plain.thread_count import check_threads

BackendName = Literal["auto", "onnxruntime", "tensorrt"]


def open_backend(
    bundle: Bundle, backend: str, *, variant: str | None, provider: str, threads: int, unused: Collection[int] = ()
) -> tuple[Variant, Backend]:
    """Open a backend and choose the variant it runs; see `Sampler.open` for the other arguments.

    Args:
        unused: Flow blocks that are not going to run. A backend that loads all blocks at once leaves them until they do.

    Raises:
        UsageError: a name is not known, or two arguments exclude each other.
        BundleError: the bundle lacks the variant.
        BackendError: the backend cannot run here.
    """
    _check(backend, threads)
    if backend == "auto":
        backend = "onnxruntime"
        if _may_take_engines(bundle, provider):
            try:
                return BACKENDS["tensorrt"](bundle, variant, provider, threads, unused)
            except BackendError:
                pass  # no GPU, or no engine for it: auto runs what works here, and every report names the backend
    return BACKENDS[backend](bundle, variant, provider, threads, unused)


def _check(backend: str, threads: int) -> None:
    if backend not in get_args(BackendName):
        raise UsageError(f"backend {backend!r} is not known; choose {', '.join(get_args(BackendName))}")
    check_threads(threads)


def _may_take_engines(bundle: Bundle, provider: str) -> bool:
    """Whether `auto` looks for engines. They are machine code: those from elsewhere run only if they are asked for."""
    return provider == "cpu" and bundle.is_own and any(read_builds(bundle))


def onnxruntime_networks(bundle: Bundle, provider: str, threads: int, *, lean: bool = False) -> NetworkSessions:
    """The networks of a bundle beside the flow on ONNX Runtime; see `OnnxRuntimeNetworks`."""
    from starflow.runtime.backends.onnxruntime.networks import OnnxRuntimeNetworks
    from starflow.runtime.backends.onnxruntime.session import check_provider

    return OnnxRuntimeNetworks(bundle, check_provider(provider), threads, lean=lean)


def open_networks(
    bundle: Bundle, backend: str, *, variant: str | None, provider: str, threads: int, lean: bool = False
) -> NetworkSessions:
    """What runs the networks beside the flow if `open_backend` opens this backend, without opening the flow.

    `lean` is for a few runs. See `open_backend` for the errors.
    """
    _check(backend, threads)

    def on_onnxruntime() -> NetworkSessions:
        return onnxruntime_networks(bundle, provider, threads, lean=lean)

    if backend == "tensorrt" or (backend == "auto" and _may_take_engines(bundle, provider)):
        from starflow.runtime.backends.tensorrt.networks import open_tensorrt_networks

        try:
            return open_tensorrt_networks(bundle, None if variant == "auto" else variant, on_onnxruntime)
        except BackendError:
            if backend == "tensorrt":
                raise
    return on_onnxruntime()


def _open_tensorrt(
    bundle: Bundle, variant: str | None, provider: str, threads: int, unused: Collection[int]
) -> tuple[Variant, Backend]:
    from starflow.runtime.backends.tensorrt.backend import open_tensorrt

    if provider != "cpu":
        raise UsageError(f"provider {provider} is for ONNX Runtime; leave it out with the tensorrt backend")
    opened = open_tensorrt(bundle, None if variant == "auto" else variant, unused=unused)
    bundle.fetch(bundle.manifest.files(variants=()))
    return opened.variant, opened


def _open_onnxruntime(
    bundle: Bundle, variant: str | None, provider: str, threads: int, unused: Collection[int]
) -> tuple[Variant, Backend]:
    # Sessions are opened when they are first needed, whatever is unused.
    from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
    from starflow.runtime.backends.onnxruntime.cuda_backend import CudaBackend
    from starflow.runtime.backends.onnxruntime.session import check_provider

    checked = check_provider(provider)
    chosen = variant_for(bundle, variant, checked)
    bundle.fetch(bundle.manifest.files([chosen.name]))
    if checked == "cuda":
        return chosen, CudaBackend(bundle, chosen)
    return chosen, OnnxRuntimeBackend(bundle, chosen, checked, threads)


def variant_for(bundle: Bundle, name: str | None, provider: str) -> Variant:
    """The variant called `name`, or the one that an execution provider runs best; `auto` is the fastest one, see `fastest_variant`.

    Raises:
        UsageError: the provider cannot run it.
        BundleError: there is no such variant.
    """
    if name == "auto":
        default = variant_for(bundle, None, provider)
        return fastest_variant(bundle, default) if provider == "cpu" else default
    if name is None and provider == "cuda":
        fused = [each for each in bundle.manifest.variants if runs_on(each, "cuda") and each.lowering == "cuda"]
        if fused:
            return fused[0]
    chosen = bundle.variant(name, "cpu" if provider == "cpu" else "portable")
    if not runs_on(chosen, provider):
        needed = {"cpu": "a cpu variant", "cuda": "a portable one or one of cuda in fp16"}.get(
            provider, "a portable one"
        )
        raise UsageError(f"variant {chosen.name} does not run on provider {provider}, which needs {needed}")
    return chosen


def runs_on(variant: Variant, provider: str) -> bool:
    """Whether an execution provider has the operators of a variant in its number type."""
    if variant.lowering == "cuda":  # its attention computes in float16 there, and in float32 on the CPU
        return provider == ("cpu" if variant.precision == "fp32" else "cuda")
    return variant.lowering == "portable" or provider == "cpu"


# By name: takes bundle, variant, provider, threads and unused blocks, and returns the variant that runs and the backend.
BACKENDS: dict[str, Callable[[Bundle, str | None, str, int, Collection[int]], tuple[Variant, Backend]]] = {
    "onnxruntime": _open_onnxruntime,
    "tensorrt": _open_tensorrt,
}
