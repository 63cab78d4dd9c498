"""Run a bundle in every way, and compare.

Each route through an autoregressive flow is compared with the reference three times:

* `given`: every block on the reference's noise *and* tokens, decoded in chunks. Nothing that a route computes is fed back to
  it, so the error is that of the arithmetic alone.
* `block`: every block on the reference's noise, token by token, on its own tokens.
* `sample`: the whole sample, on its own tokens throughout, as `starflow sample` runs it.

A continuous flow has steps in place of tokens, and no blocks: it is compared step by step with the reference's state before
each step `given`, and over the whole integration.

Networks beside the flow are compared with PyTorch's, and what TensorRT makes of them with ONNX Runtime's. `text`: the features of a
few captions. `denoise`: what a denoiser adds to samples. `pixels`: the pixels of samples, and the latents of those pixels.
`student`: the tokens that a student makes.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starflow.export.tensorrt.parser_guard import NETWORK_INDEX_RANK, guard_graph
from starflow.export.verification import networks
from starflow.export.verification.agreement import Measurement, compare, token_errors
from starflow.export.verification.families import subject_of
from starflow.export.verification.network_routes import NetworkRoute
from starflow.export.verification.routes import Failure, NotRun, Reference, Route
from starflow.export.verification.subject import Part, Subject
from starflow.export.verification.tolerances import Kind, Tolerances
from starflow.export.verification.torch_reference import TorchReference
from starflow.runtime.backends.base import NetworkSessions
from starflow.runtime.backends.choice import onnxruntime_networks
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.bundle.named_network import networks_of
from starflow.runtime.networks.autoencoder import Autoencoder
from starflow.runtime.plain.errors import ExportError, StarflowError, UsageError
from starflow.runtime.plain.images import to_uint8
from starflow.runtime.plain.progress import Report, no_report
from starflow.runtime.traces.case import Case, Trace, nudged


@dataclass(frozen=True)
class Guarded:
    """How many portable graphs were read, and which would be misread."""

    graphs: int
    failures: tuple[Failure, ...]


NOT_GUARDED = Guarded(0, ())


def guard_variants(bundle: Bundle, variants: Sequence[Variant]) -> Guarded:
    """Read every graph of the portable ones among some variants, and those of the networks beside the flow."""
    portable = [graph for variant in variants if variant.lowering == "portable" for graph in variant.graphs]
    checks = [partial(guard_graph, bundle.path(graph.file), graph.block) for graph in portable]
    beside = networks_of(bundle.manifest)
    checks += [partial(guard_graph, bundle.path(n.spec.file), index_rank=NETWORK_INDEX_RANK) for n in beside]
    failures = []
    for check in checks:
        try:
            check()
        except ExportError as error:
            failures.append(Failure("parser guard", str(error)))
    return Guarded(len(checks), tuple(failures))


@dataclass(frozen=True)
class Verification:
    """The result of a verification."""

    subject: Subject
    reference: str
    case: Case
    routes: tuple[str, ...]  # names of all that was compared with the reference
    measurements: tuple[Measurement, ...]  # one for each route, kind and part
    failures: tuple[Failure, ...]
    guard: Guarded
    not_run: tuple[NotRun, ...]
    # Per part, [T] error of the reference's own tokens after the noise was moved by one unit in the last place: how
    # much the model amplifies the smallest disturbance.
    sensitivity: dict[int, NDArray]
    images: dict[str, NDArray[np.uint8]]  # per route, uint8 [N, H, W, C]; empty for models of latents

    @property
    def compared(self) -> bool:
        """Whether there was anything to compare: what did not run proves nothing."""
        return any(measurement.route != self.reference for measurement in self.measurements)

    @property
    def passed(self) -> bool:
        """Whether something was compared, and everything that ran agrees."""
        broken = self.failures or self.guard.failures
        return self.compared and not broken and all(m.passed for m in self.measurements)


def verify(
    bundle: Bundle,
    reference: Reference,
    routes: Sequence[Route],
    case: Case,
    tolerances: Tolerances,
    *,
    network_routes: Sequence[NetworkRoute] = (),
    text_encoder: Path | None = None,
    autoencoder: Path | None = None,
    students: Mapping[int, Path] | None = None,
    not_run: Sequence[NotRun] = (),
    guard: Guarded = NOT_GUARDED,
    progress: Report = no_report,
) -> Verification:
    """Compare every route with the reference.

    Args:
        reference: What to compare with. If it is one of the routes, its chunks are compared with its own steps.
        routes: What to run. A route that breaks down is reported, and the others go on.
        network_routes: The same of the networks beside the flow.
        text_encoder: Folder of the text encoder the bundle was exported with, to compare the bundle's with.
        autoencoder: Folder of the autoencoder the bundle was exported with, likewise.
        students: Folders of the students that the bundle was exported with, by flow block.
        not_run, guard: Handed on to the result.

    Raises:
        StarflowError: the reference cannot be run.
        UsageError: the case does not fit the bundle.
    """
    subject = subject_of(bundle)
    denoisers = bundle.manifest.denoisers if isinstance(reference, TorchReference) else ()
    total = 2 + len(routes) * (1 + len(subject.parts)) + len(denoisers) + bool(text_encoder) + bool(autoencoder)
    total += len(network_routes) + len(students or {})
    done = count()

    def start(what: str) -> None:
        progress(next(done), total, what)

    start(reference.name)
    expected = reference.trace(case)
    start(f"{reference.name}, noise moved by one ulp")
    disturbed = reference.trace(nudged(case))
    data = {reference.name: subject.data(expected)}
    measurements: list[Measurement] = []
    failures: list[Failure] = []
    for route in routes:
        start(route.name)

        def on_part(part: Part, name: str = route.name) -> None:
            start(f"{name}, {part.name}")

        try:
            with route.open() as backend:
                found = subject.run(route.variant, backend, case, expected, on_part)
        except UsageError:
            raise
        except StarflowError as error:
            failures.append(Failure(route.name, str(error)))
            continue
        data[route.name] = subject.data(Trace(found["sample"]))
        kinds: Iterable[Kind] = ("given",) if route.name == reference.name else subject.kinds
        for kind in kinds:
            tolerance = tolerances[route.variant.precision, kind]
            right = subject.expected(kind, expected, case)
            measurements += compare(route.name, kind, subject.parts, right, found[kind], tolerance)
    measured = [route.name for route in routes]
    sample = data[reference.name]
    with closing(onnxruntime_networks(bundle, "cpu", 0)) as sessions:
        for spec in denoisers:
            assert isinstance(reference, TorchReference)
            name = networks.denoiser_name(spec)
            start(name)
            measurement, data[name] = networks.compare_denoiser(
                bundle, sessions, spec, reference, case, sample, tolerances
            )
            measurements.append(measurement)
        if text_encoder:
            start("text encoder")
            measurements.append(networks.compare_text_encoder(bundle, sessions, text_encoder, tolerances))
        if autoencoder:
            start("autoencoder")
            measurements += networks.compare_autoencoder(bundle, sessions, autoencoder, sample, tolerances)
        for block, folder in (students or {}).items():
            start(networks.student_name(block))
            measurements += networks.compare_student(bundle, sessions, block, folder, case, tolerances)
        images = _pictures(bundle, sessions, data) if bundle.manifest.output == "images" else {}
    for each in network_routes:
        start(each.name)
        try:
            measurements.append(each.compare(tolerances))
        except StarflowError as error:
            failures.append(Failure(each.name, str(error)))
    return Verification(
        subject=subject,
        reference=reference.name,
        case=case,
        routes=tuple(dict.fromkeys([*measured, *(measurement.route for measurement in measurements)])),
        measurements=tuple(measurements),
        failures=tuple(failures),
        guard=guard,
        not_run=tuple(not_run),
        sensitivity={i: token_errors(tokens, disturbed.tokens[i]) for i, tokens in expected.tokens.items()},
        images=images,
    )


def _pictures(bundle: Bundle, sessions: NetworkSessions, data: Mapping[str, NDArray]) -> dict[str, NDArray[np.uint8]]:
    """Finished samples as pixels, by the plain decoder where data are latents; what is not finite is shown as mid-grey."""
    image, autoencoder = bundle.manifest.image, bundle.manifest.autoencoder
    if autoencoder is None:
        return {name: to_uint8(np.nan_to_num(x / image.scale + image.shift, nan=0.0)) for name, x in data.items()}
    decoder = Autoencoder(bundle, sessions, autoencoder)
    finite = {name: np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0) for name, x in data.items()}
    return {name: to_uint8(decoder.decode(x, noisy=False)) for name, x in finite.items()}
