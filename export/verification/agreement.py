"""Do two sets of tokens agree, and where do they differ most?

The verdicts are Polygraphy's (`SimpleCompareFunc` for every element, `L2CompareFunc` for the whole). It keeps no account of
where an error lies, nor of errors in relation to the size of the whole, so those figures are NumPy's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from polygraphy.comparator import Comparator, IterationResult, L2CompareFunc, RunResults, SimpleCompareFunc
from polygraphy.logger import G_LOGGER

from starflow.export.verification.tolerances import Kind, Measure, Tolerance
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.traces.trace import finite


@dataclass(frozen=True)
class Measurement:
    """The error of one flow block on one route.

    Attributes:
        route: What was run.
        kind: With which inputs: `given`, `block` or `sample`.
        block: Index of the flow block.
        largest: Largest |found - expected|; this and the following are None where a value is not finite.
        scaled: Largest |found - expected| / max(1, |expected|).
        relative: |found - expected| / |expected| over all tokens, Euclidean norm.
        token: Index of the token with the largest error (or the first that is not finite), in decoding order.
        position: Its position in the caches, condition tokens first.
        image: The image it belongs to.
        measure: Which of the figures the tolerance bounds: `largest` means `scaled`.
        tolerance: The bound.
        passed: Whether it holds.
        finding: What else is wrong: a value that is not finite, by block and position.
        per_token: For every token its error, relative to the root mean square of all tokens; their own root mean square
            is `relative`. None for a token that is not finite.
    """

    route: str
    kind: Kind
    block: int
    largest: float | None
    scaled: float | None
    relative: float | None
    token: int
    position: int
    image: int
    measure: Measure
    tolerance: float
    passed: bool
    finding: str | None
    per_token: tuple[float | None, ...]

    @property
    def load(self) -> float:
        """The error as a part of what is allowed; more than 1 is too much, and so is what is not finite."""
        error = self.scaled if self.measure == "largest" else self.relative
        return float("inf") if error is None else error / self.tolerance


def compare(
    route: str,
    kind: Kind,
    blocks: Mapping[int, Block],
    expected: Mapping[int, NDArray],
    found: Mapping[int, NDArray],
    tolerance: Tolerance,
    unit: str = "token",
) -> list[Measurement]:
    """Compare the tokens [N, T, D] of every block in `found` with those expected, in block order.

    `unit` is what findings call a token.
    """
    verdicts = _verdicts(expected, found, tolerance)
    return [
        _measure(route, kind, blocks[index], expected[index], tokens, tolerance, verdicts[index], unit)
        for index, tokens in found.items()
    ]


def token_errors(expected: NDArray, found: NDArray) -> NDArray:
    """[T] error of every token, relative to the root mean square token of `expected`; both [N, T, D]."""
    with np.errstate(invalid="ignore"):  # infinity less infinity
        per_token = np.square(found.astype(np.float64) - expected).sum(axis=(0, 2))
    size = np.square(finite(expected.astype(np.float64))).sum() / expected.shape[1]
    errors: NDArray = np.sqrt(per_token / max(size, np.finfo(float).tiny))
    return errors


def _measure(
    route: str,
    kind: Kind,
    block: Block,
    expected: NDArray,
    found: NDArray,
    tolerance: Tolerance,
    passed: bool,
    unit: str,
) -> Measurement:
    with np.errstate(invalid="ignore"):
        difference = np.abs(found.astype(np.float64) - expected)
    finite = np.isfinite(difference)
    per_token = token_errors(expected, found)
    finding = None
    if finite.all():
        image, token, _ = np.unravel_index(int(difference.argmax()), difference.shape)
    else:
        token = np.argmin(finite.all(axis=(0, 2)))
        image = np.argmin(finite[:, token].all(axis=1))
        whose = "the reference" if not np.isfinite(expected[image, token]).all() else "it"
        finding = (
            f"{whose} gave NaN or infinity in flow block {block.index} at position {_position(block, int(token))} "
            f"({unit} {token}, image {image})"
        )
    return Measurement(
        route=route,
        kind=kind,
        block=block.index,
        largest=None if finding else float(difference.max()),
        scaled=None if finding else float((difference / np.maximum(1, np.abs(expected))).max()),
        relative=None if finding else float(np.sqrt(np.square(per_token).mean())),
        token=int(token),
        position=_position(block, int(token)),
        image=int(image),
        measure=tolerance.measure,
        tolerance=tolerance.value,
        passed=passed and finding is None,  # whatever a comparator makes of NaN
        finding=finding,
        per_token=tuple(float(error) if np.isfinite(error) else None for error in per_token),
    )


def _position(block: Block, token: int) -> int:
    """Where a token stands in the caches; one that passes the block unchanged counts as the first."""
    return block.prefix + max(0, token - block.first_token)


def _verdicts(expected: Mapping[int, NDArray], found: Mapping[int, NDArray], tolerance: Tolerance) -> dict[int, bool]:
    """Polygraphy's verdict on every block."""
    wanted = {str(index): expected[index].astype(np.float64) for index in found}
    results = RunResults()
    results.append(("found", [IterationResult({str(i): v.astype(np.float64) for i, v in found.items()})]))
    results.append(("expected", [IterationResult(wanted)]))
    if tolerance.measure == "largest":
        # An element passes when it keeps one of the two, which is |difference| <= value * max(1, |expected|).
        function = SimpleCompareFunc(atol=tolerance.value, rtol=tolerance.value, check_error_stat="elemwise")
    else:
        norms = {name: tolerance.value * float(np.linalg.norm(value)) for name, value in wanted.items()}
        function = L2CompareFunc(l2_threshold=norms)
    with G_LOGGER.verbosity(), np.errstate(all="ignore"):  # it prints statistics of every array otherwise
        (accuracy,) = Comparator.compare_accuracy(results, compare_func=function)
    (matches,) = accuracy["found", "expected"]
    return {int(name): bool(match) for name, match in matches.items()}
