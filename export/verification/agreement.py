"""Do two sets of tokens agree, and where do they differ most?

The verdicts are Polygraphy's (`SimpleCompareFunc` for every element, `L2CompareFunc` for the whole). Polygraphy
does not say where an error lies, nor how large it is relative to the whole, so those figures are computed here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from polygraphy.comparator import Comparator, IterationResult, L2CompareFunc, RunResults, SimpleCompareFunc
from polygraphy.logger import G_LOGGER

from starflow.export.verification.subject import Part
from starflow.export.verification.tolerances import Kind, Measure, Tolerance
from starflow.runtime.traces.case import finite


@dataclass(frozen=True)
class Measurement:
    """The error of one part of the bundle on one route."""

    route: str
    kind: Kind  # the inputs it was given
    block: int  # index of the flow block; 0 where there are no blocks
    # Largest |found - expected|; this and the following are None where a value is not finite.
    largest: float | None
    scaled: float | None  # largest |found - expected| / max(1, |expected|)
    relative: float | None  # |found - expected| / |expected| over all tokens, Euclidean norm
    # Index of the token with the largest error (or the first that is not finite), in decoding order.
    token: int
    position: int  # its position in the caches, condition tokens first
    image: int  # index of its image
    place: str  # the part and the token, in words
    measure: Measure  # which of the figures the tolerance bounds: `largest` means `scaled`
    tolerance: float
    passed: bool
    finding: str | None  # where a value is not finite, in words
    # For every token its error, relative to the root mean square of all tokens; their own root mean square is
    # `relative`. None for a token that is not finite.
    per_token: tuple[float | None, ...]

    @property
    def error(self) -> float | None:
        """The figure that the tolerance bounds."""
        return self.scaled if self.measure == "largest" else self.relative

    @property
    def load(self) -> float:
        """The error as a part of what is allowed; more than 1 is too much, and so is what is not finite."""
        return float("inf") if self.error is None else self.error / self.tolerance


def compare(
    route: str,
    kind: Kind,
    parts: Mapping[int, Part],
    expected: Mapping[int, NDArray],
    found: Mapping[int, NDArray],
    tolerance: Tolerance,
) -> list[Measurement]:
    """Compare the tokens [N, T, D] of every part in `found` with those expected."""
    return [
        compare_one(route, kind, parts[index], expected[index], tokens, tolerance) for index, tokens in found.items()
    ]


def token_errors(expected: NDArray, found: NDArray) -> NDArray:
    """[T] error of every token, relative to the root mean square token of `expected`; both [N, T, D]."""
    with np.errstate(invalid="ignore"):  # infinity less infinity
        per_token = np.square(found.astype(np.float64) - expected).sum(axis=(0, 2))
    size = np.square(finite(expected.astype(np.float64))).sum() / expected.shape[1]
    errors: NDArray = np.sqrt(per_token / max(size, np.finfo(float).tiny))
    return errors


def compare_one(
    route: str, kind: Kind, part: Part, expected: NDArray, found: NDArray, tolerance: Tolerance
) -> Measurement:
    """`compare` for a single part."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(found.astype(np.float64) - expected)
    finite = np.isfinite(difference)
    per_token = token_errors(expected, found)
    largest: float | None = None
    scaled: float | None = None
    relative: float | None = None
    finding = None
    if finite.all():
        image, token = map(int, np.unravel_index(difference.argmax(), difference.shape)[:2])
        largest = float(difference.max())
        scaled = float((difference / np.maximum(1, np.abs(expected))).max())
        relative = float(np.sqrt(np.square(per_token).mean()))
    else:
        token = int(np.argmin(finite.all(axis=(0, 2))))
        image = int(np.argmin(finite[:, token].all(axis=1)))
        whose = "the reference" if not np.isfinite(expected[image, token]).all() else "it"
        finding = (
            f"{whose} gave NaN or infinity in {part.name} at position {part.position(token)} "
            f"({part.unit} {token}, image {image})"
        )
    return Measurement(
        route=route,
        kind=kind,
        block=part.index,
        largest=largest,
        scaled=scaled,
        relative=relative,
        token=token,
        position=part.position(token),
        image=image,
        place=f"{part.name.removeprefix('flow ')}, {part.unit} {token}",
        measure=tolerance.measure,
        tolerance=tolerance.value,
        passed=finding is None and _agrees(expected, found, tolerance),  # whatever a comparator makes of NaN
        finding=finding,
        per_token=tuple(float(error) if np.isfinite(error) else None for error in per_token),
    )


def _agrees(expected: NDArray, found: NDArray, tolerance: Tolerance) -> bool:
    """Polygraphy's verdict."""
    wanted = expected.astype(np.float64)
    results = RunResults()
    results.append(("found", [IterationResult({"tokens": found.astype(np.float64)})]))
    results.append(("expected", [IterationResult({"tokens": wanted})]))
    if tolerance.measure == "largest":
        # An element passes when it keeps one of the two, which is |difference| <= value * max(1, |expected|).
        function = SimpleCompareFunc(atol=tolerance.value, rtol=tolerance.value, check_error_stat="elemwise")
    else:
        function = L2CompareFunc(l2_threshold=tolerance.value * float(np.linalg.norm(wanted)))
    with G_LOGGER.verbosity(), np.errstate(all="ignore"):  # it prints statistics of every array otherwise
        return bool(Comparator.compare_accuracy(results, compare_func=function))
