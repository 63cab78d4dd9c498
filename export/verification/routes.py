"""The ways a bundle can be run on this machine, and those it cannot, with the reason."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, get_args

from starflow.export.verification.families import subject_of
from starflow.runtime.backends.base import Backend, Provider
from starflow.runtime.backends.choice import open_backend, runs_on
from starflow.runtime.backends.tensorrt.flavour import load_flavour
from starflow.runtime.bundle.build_record import read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.plain.errors import BackendError, UsageError
from starflow.runtime.traces.case import Case, Trace

BackendName = Literal["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "network", "tensorrt"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)

# What to hold the others to, best first: all in float32, the CPU's lowering is nearest to PyTorch; cpu-fp16 computes in float32
# too, from rounded weights.
REFERENCES = ("cpu-fp32", "portable-fp32", "cpu-fp16")


class Reference(Protocol):
    """What the others are compared with."""

    @property
    def name(self) -> str:
        """How reports call it."""

    def trace(self, case: Case) -> Trace:
        """Sample the case."""


@dataclass(frozen=True)
class Route:
    """One way to run one variant."""

    name: str  # backend and variant, as reports call it
    bundle: Bundle
    variant: Variant
    open: Callable[[], Backend]

    def trace(self, case: Case) -> Trace:
        """Sample the case, on a backend of its own."""
        with self.open() as backend:
            return subject_of(self.bundle).trace(self.variant, backend, case)


@dataclass(frozen=True)
class NotRun:
    """A route, or a comparison, that was asked for and cannot run on this machine."""

    route: str
    why: str


@dataclass(frozen=True)
class Failure:
    """A route that broke down, or a graph that was refused, and why."""

    route: str
    what: str


def choose_variants(bundle: Bundle, names: Sequence[str] | None) -> list[Variant]:
    """The variants of some names, or all; BundleError if one is not in the bundle."""
    return [bundle.variant(name, "portable") for name in names] if names else list(bundle.manifest.variants)


def find_routes(
    bundle: Bundle, backends: Sequence[BackendName], variants: Sequence[Variant]
) -> tuple[list[Route], list[NotRun]]:
    """The routes through some backends, of some variants; BundleError if a build.json is damaged."""
    found = [each for name in BACKENDS if name in backends for each in _FINDERS[name](bundle, variants)]
    routes = [each for each in found if isinstance(each, Route)]
    return routes, [each for each in found if isinstance(each, NotRun)]


def default_reference(bundle: Bundle) -> Route:
    """The float32 variant to compare with where no checkpoint is given; UsageError if the bundle has none."""
    for name in REFERENCES:
        for variant in bundle.manifest.variants:
            if variant.name == name:
                return _onnxruntime_route(bundle, variant)
    raise UsageError(
        f"{bundle.root}: has no variant to compare with (one of {', '.join(REFERENCES)}); "
        "name the checkpoint it was exported from: --checkpoint FOLDER"
    )


def _onnxruntime_route(bundle: Bundle, variant: Variant, provider: Provider = "cpu") -> Route:
    def opened() -> Backend:
        return open_backend(bundle, "onnxruntime", variant=variant.name, provider=provider, threads=0)[1]

    return Route(f"onnxruntime{'' if provider == 'cpu' else f'-{provider}'} {variant.name}", bundle, variant, opened)


def _onnxruntime(provider: Provider, bundle: Bundle, variants: Sequence[Variant]) -> Iterator[Route | NotRun]:
    for variant in variants:
        route = _onnxruntime_route(bundle, variant, provider)
        if not runs_on(variant, provider):
            continue  # written for another one
        if variant.precision == "bf16":
            yield NotRun(route.name, "the onnxruntime backend cannot compute in bfloat16; --network can")
        else:
            yield route if provider == "cpu" else _unless_refused(route)


def _unless_refused(route: Route) -> Route | NotRun:
    """Open it for a moment: a provider that is listed need not load."""
    try:
        with route.open() as backend:
            subject_of(route.bundle).load(route.variant, backend)
    except BackendError as error:
        return NotRun(route.name, str(error))
    return route


def _network(bundle: Bundle, variants: Sequence[Variant]) -> Iterator[Route | NotRun]:
    try:
        load_flavour("tensorrt-rtx")  # the flavour whose parser needs no GPU
    except BackendError as error:
        yield NotRun("network", str(error))
        return
    for variant in variants:
        if variant.lowering == "portable":
            yield Route(f"network {variant.name}", bundle, variant, partial(_open_network, bundle, variant))


def _open_network(bundle: Bundle, variant: Variant) -> Backend:
    from starflow.export.tensorrt.interpreter.backend import NetworkBackend

    return NetworkBackend(bundle, variant, rounding=variant.precision != "fp32")


def _tensorrt(bundle: Bundle, variants: Sequence[Variant]) -> Iterator[Route | NotRun]:
    from starflow.runtime.backends.cuda.device import Gpu
    from starflow.runtime.backends.tensorrt.backend import open_tensorrt
    from starflow.runtime.backends.tensorrt.build import choose_build

    built = {record.variant for record in read_builds(bundle)}
    if not built:
        yield NotRun("tensorrt", f"the bundle has no engines; build them with: starflow build {bundle.root}")
    for variant in variants:
        if variant.name in built:
            name = f"tensorrt {variant.name}"
            try:
                gpu = Gpu()
            except BackendError as error:
                yield NotRun(name, str(error).partition(";")[0])  # what follows is advice to whoever wants to sample
                continue
            try:
                choose_build(bundle, variant.name, gpu)
                yield Route(name, bundle, variant, partial(open_tensorrt, bundle, variant.name))
            except BackendError as error:  # its engines are for another GPU, or their TensorRT is not installed
                yield NotRun(name, str(error))


_FINDERS: dict[BackendName, Callable[[Bundle, Sequence[Variant]], Iterator[Route | NotRun]]] = {
    "onnxruntime": partial(_onnxruntime, "cpu"),
    "onnxruntime-cuda": partial(_onnxruntime, "cuda"),
    "onnxruntime-tensorrt": partial(_onnxruntime, "tensorrt"),
    "network": _network,
    "tensorrt": _tensorrt,
}
