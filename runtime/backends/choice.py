"""From what the user asks for to an open backend."""

from typing import get_args

from starflow.runtime.backends.base import Backend, BackendName
from starflow.runtime.bundle.build_record import read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.plain.errors import BackendError, UsageError


def open_backend(
    bundle: Bundle, backend: str, *, variant: str | None, provider: str, threads: int
) -> tuple[Variant, Backend]:
    """Open a backend and choose the variant it runs; see `Sampler.open` for the arguments.

    Raises:
        UsageError: a name is not known, or two arguments exclude each other.
        BundleError: the bundle lacks the variant.
        BackendError: the backend cannot run here.
    """
    if backend not in get_args(BackendName):
        raise UsageError(f"backend {backend!r} is not known; choose {', '.join(get_args(BackendName))}")
    if threads < 0:
        raise UsageError(f"threads {threads}: give a number >= 0 (0 measures whether one or all cores are faster)")
    if backend == "tensorrt" and provider != "cpu":
        raise UsageError(f"provider {provider} is one of ONNX Runtime's; leave it out with the tensorrt backend")
    if backend == "tensorrt":
        return _open_tensorrt(bundle, variant)
    if backend == "auto" and provider == "cpu" and any(read_builds(bundle)):
        try:
            return _open_tensorrt(bundle, variant)
        except BackendError:
            pass  # no GPU, or no engine for it: auto means whatever runs here, and every report names what did
    return _open_onnxruntime(bundle, variant, provider, threads)


def _open_tensorrt(bundle: Bundle, variant: str | None) -> tuple[Variant, Backend]:
    from starflow.runtime.backends.tensorrt.backend import open_tensorrt

    opened = open_tensorrt(bundle, variant)
    return opened.variant, opened


def _open_onnxruntime(bundle: Bundle, variant: str | None, provider: str, threads: int) -> tuple[Variant, Backend]:
    from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
    from starflow.runtime.backends.onnxruntime.session import check_provider

    checked = check_provider(provider)
    chosen = bundle.variant(variant, "cpu" if checked == "cpu" else "portable")
    if checked != "cpu" and chosen.lowering != "portable":
        raise UsageError(f"variant {chosen.name} is for the CPU; provider {checked} runs the portable ones")
    return chosen, OnnxRuntimeBackend(bundle, chosen, checked, threads)
