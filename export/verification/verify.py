"""Run a bundle in every way, and compare.

Each route is compared with the reference three times:

* `given`: every block on the reference's noise *and* tokens, decoded in chunks. Nothing that a route makes is fed back to
  it, so the error is that of the arithmetic alone.
* `block`: every block on the reference's noise, token by token, on its own tokens.
* `sample`: the whole sample, on its own tokens throughout, as `starflow sample` runs it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from starflow.export.verification.agreement import Measurement, compare, token_errors
from starflow.export.verification.guard import NOT_GUARDED, Guarded
from starflow.export.verification.routes import Failure, NotRun, Reference, Route
from starflow.export.verification.tolerances import KINDS, Kind, Tolerances
from starflow.export.verification.trace import (
    Case,
    Trace,
    decode_block,
    decode_given,
    finite,
    nudged,
    sample_trace,
)
from starflow.runtime.backends.base import BlockInputs
from starflow.runtime.backends.sequence_runner import SequenceRunner
from starflow.runtime.bundle import Bundle
from starflow.runtime.errors import StarflowError, UsageError
from starflow.runtime.images import to_uint8
from starflow.runtime.manifest import Block, Manifest
from starflow.runtime.progress import Report, no_report
from starflow.runtime.tokens import unpatchify


@dataclass(frozen=True)
class Verification:
    """What came out.

    Attributes:
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
    manifest = bundle.manifest
    blocks = {block.index: block for block in reversed(manifest.blocks) if not block.identity}
    steps = _Steps(progress, 2 + len(routes) * (1 + len(blocks)))
    steps.start(reference.name)
    expected = reference.trace(case)
    steps.start(f"{reference.name}, noise moved by one ulp")
    disturbed = reference.trace(nudged(case))
    images = {reference.name: _images(manifest, blocks, expected)}
    measurements: list[Measurement] = []
    failures: list[Failure] = []
    for route in routes:
        kinds: tuple[Kind, ...] = ("given",) if route.name == reference.name else KINDS
        try:
            found = _run(bundle, route, case, blocks, expected, steps)
        except UsageError:
            raise
        except StarflowError as error:
            failures.append(Failure(route.name, str(error)))
            continue
        images[route.name] = _images(manifest, blocks, Trace(found["sample"]))
        for kind in kinds:
            tolerance = tolerances[route.variant.precision, kind]
            measurements += compare(route.name, kind, blocks, expected.tokens, found[kind], tolerance)
    return Verification(
        reference=reference.name,
        case=case,
        routes=tuple(route.name for route in routes),
        measurements=tuple(measurements),
        failures=tuple(failures),
        guard=guard,
        not_run=tuple(not_run),
        sensitivity={i: token_errors(tokens, disturbed.tokens[i]) for i, tokens in expected.tokens.items()},
        images={} if manifest.image.mode == "latent" else images,
    )


def _run(
    bundle: Bundle, route: Route, case: Case, blocks: dict[int, Block], expected: Trace, steps: "_Steps"
) -> dict[Kind, dict[int, NDArray]]:
    """The tokens of every kind and block, [N, T, D] in block order."""
    found: dict[Kind, dict[int, NDArray]] = {"given": {}, "block": {}}
    with route.open() as backend:
        steps.start(route.name)
        trace = sample_trace(bundle, route.variant, backend, case)
        found["sample"] = trace.tokens
        above: Block | None = None
        for index, block in blocks.items():
            steps.start(f"{route.name}, flow block {index}")
            runner = backend.runner(index)
            assert isinstance(runner, SequenceRunner)
            decoded, given = [], []
            for part, own in _parts(trace.inputs[index]):
                inputs = own if above is None else replace(own, noise=_noise(expected, above, block)[part])
                decoded.append(decode_block(runner, block, inputs))
                given.append(decode_given(runner, block, inputs, finite(expected.tokens[index][part])))
            found["block"][index], found["given"][index] = np.concatenate(decoded), np.concatenate(given)
            above = block
    return found


def _parts(inputs: list[BlockInputs]) -> Iterator[tuple[slice, BlockInputs]]:
    """Which images each batch holds, and what a block was given for them."""
    start = 0
    for batch in inputs:
        yield slice(start, start + len(batch.noise)), batch
        start += len(batch.noise)


def _noise(trace: Trace, above: Block, block: Block) -> NDArray:
    """What goes into a block: the tokens of the one above, in its own order."""
    tokens = finite(trace.tokens[above.index])
    return tokens if above.reversed == block.reversed else tokens[:, ::-1]


def _images(manifest: Manifest, blocks: dict[int, Block], trace: Trace) -> NDArray[np.uint8]:
    """The finished sample as pixels; what is not finite is shown as mid-grey."""
    last = list(blocks.values())[-1]
    tokens = trace.tokens[last.index]
    x = unpatchify(tokens[:, ::-1] if last.reversed else tokens, manifest.model)
    return to_uint8(np.nan_to_num(x / manifest.image.scale + manifest.image.shift, nan=0.0))


class _Steps:
    """Reports one thing after another."""

    def __init__(self, report: Report, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def start(self, what: str) -> None:
        self._report(self._done, self._total, what)
        self._done += 1
