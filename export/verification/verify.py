"""Run a bundle in every way, and compare.

Each route through an autoregressive flow is compared with the reference three times:

* `given`: every block on the reference's noise *and* tokens, decoded in chunks. Nothing that a route makes is fed back to
  it, so the error is that of the arithmetic alone.
* `block`: every block on the reference's noise, token by token, on its own tokens.
* `sample`: the whole sample, on its own tokens throughout, as `starflow sample` runs it.

A continuous flow has steps in place of tokens, and no blocks: it is compared with the reference's state `given` before each
step, and over the whole integration.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starflow.export.verification.agreement import Measurement, compare, token_errors
from starflow.export.verification.guard import NOT_GUARDED, Guarded
from starflow.export.verification.routes import Failure, NotRun, Reference, Route
from starflow.export.verification.subject import Subject, subject_of
from starflow.export.verification.tolerances import Kind, Tolerances
from starflow.export.verification.trace import Case, Trace, nudged
from starflow.runtime.bundle import Bundle
from starflow.runtime.errors import StarflowError, UsageError
from starflow.runtime.images import to_uint8
from starflow.runtime.progress import Report, no_report


@dataclass(frozen=True)
class Verification:
    """What came out.

    Attributes:
        subject: What was compared of the bundle.
        reference: What the routes were compared with.
        case: What was sampled.
        routes: What was compared with it, by name.
        measurements: One for each route, kind and block.
        failures: What broke down.
        guard: What the parser guard found.
        not_run: What was asked for and could not run here.
        sensitivity: Per block, [T] error of the reference's own tokens after the noise was moved by one unit in the last
            place: how much the model amplifies the smallest disturbance.
        images: Per route, uint8 [N, H, W, C]; empty for models of latents.
    """

    subject: Subject
    reference: str
    case: Case
    routes: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    failures: tuple[Failure, ...]
    guard: Guarded
    not_run: tuple[NotRun, ...]
    sensitivity: dict[int, NDArray]
    images: dict[str, NDArray[np.uint8]]

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
    not_run: Sequence[NotRun] = (),
    guard: Guarded = NOT_GUARDED,
    progress: Report = no_report,
) -> Verification:
    """Compare every route with the reference.

    Args:
        bundle: The bundle.
        reference: What to compare with. Where it is one of the routes, its chunks are compared with its own steps.
        routes: What to run. One that breaks down is reported, and the others go on.
        case: What to sample.
        tolerances: How far apart they may be.
        not_run: Handed on to the result.
        guard: Handed on to the result.
        progress: Told of every sample and block.

    Raises:
        StarflowError: the reference cannot be run.
        UsageError: the case does not fit the bundle.
    """
    subject = subject_of(bundle)
    steps = _Steps(progress, 2 + len(routes) * (1 + len(subject.blocks)))
    steps.start(reference.name)
    expected = reference.trace(case)
    steps.start(f"{reference.name}, noise moved by one ulp")
    disturbed = reference.trace(nudged(case))
    data = {reference.name: subject.data(expected)}
    measurements: list[Measurement] = []
    failures: list[Failure] = []
    for route in routes:
        kinds: tuple[Kind, ...] = ("given",) if route.name == reference.name else subject.kinds
        steps.start(route.name)

        def on_block(index: int, name: str = route.name) -> None:
            steps.start(f"{name}, flow block {index}")

        try:
            with route.open() as backend:
                found = subject.run(route.variant, backend, case, expected, on_block)
        except UsageError:
            raise
        except StarflowError as error:
            failures.append(Failure(route.name, str(error)))
            continue
        data[route.name] = subject.data(Trace(found["sample"]))
        for kind in kinds:
            tolerance = tolerances[route.variant.precision, kind]
            right = subject.expected(kind, expected, case)
            measurements += compare(route.name, kind, subject.blocks, right, found[kind], tolerance, subject.unit)
    pictured = bundle.manifest.image.mode != "latent"
    return Verification(
        subject=subject,
        reference=reference.name,
        case=case,
        routes=tuple(route.name for route in routes),
        measurements=tuple(measurements),
        failures=tuple(failures),
        guard=guard,
        not_run=tuple(not_run),
        sensitivity={i: token_errors(tokens, disturbed.tokens[i]) for i, tokens in expected.tokens.items()},
        images={name: _images(bundle, x) for name, x in data.items()} if pictured else {},
    )


def _images(bundle: Bundle, data: NDArray) -> NDArray[np.uint8]:
    """The finished sample as pixels; what is not finite is shown as mid-grey."""
    image = bundle.manifest.image
    return to_uint8(np.nan_to_num(data / image.scale + image.shift, nan=0.0))


class _Steps:
    """Reports one thing after another."""

    def __init__(self, report: Report, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def start(self, what: str) -> None:
        self._report(self._done, self._total, what)
        self._done += 1
