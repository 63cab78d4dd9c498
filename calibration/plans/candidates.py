"""The segments that a flow block could be decoded by: steps, chunks and windows, each with its time and its error."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from starflow.calibration.plans.convergence import BlockProbe, ChunkCurve, WindowTrial, envelope
from starflow.calibration.plans.search import Edge
from starflow.runtime.plans.calibrated_decode_plan import BlockCost, segment_milliseconds
from starflow.runtime.plans.decode_plan import Chunk, Guess, Segment, Steps, Window

GUESSES: tuple[Guess, ...] = ("noise", "previous", "zeros")
TOLERANCES = tuple(10.0**-exponent for exponent in range(2, 10))  # of a chunk, relative mean square
WINDOW_TOLERANCES = (1e-2, 3e-3, 1e-3, 3e-4)  # of a window, over the tokens' root mean square
WINDOW_WIDTHS = (4, 6, 8, 12, 16, 32)


@dataclass(frozen=True)
class BlockCandidates:
    """All measurements of one flow block."""

    block: int
    tokens: int  # number of tokens that it decodes
    guess: Guess  # the guess that converges fastest
    # By guess, the root of the summed chunk errors after each pass, at one width.
    guesses: dict[Guess, tuple[float, ...]]
    curves: tuple[ChunkCurve, ...]  # curves of the chunks, from the fastest guess
    windows: tuple[WindowTrial, ...]  # windows as they ran


def explore(probe: BlockProbe, cost: BlockCost, budget: float, *, fixed: bool) -> BlockCandidates:
    """Measure one flow block.

    Args:
        cost: Its times; passes that could not pay are not measured.
        fixed: Whether windows must have fixed advances. Windows over several images always have.
    """
    paying = paying_passes(cost)
    widths = sorted(paying)
    if not widths:
        return BlockCandidates(probe.block.index, probe.count, "noise", {}, (), ())
    trial_width = min(widths, key=lambda width: abs(width - 16))
    trials = {guess: probe.chunks([trial_width], guess, paying) for guess in GUESSES}
    guesses = {guess: block_curve(curves, trial_width) for guess, curves in trials.items()}
    # At the last pass rounding decides which guess is ahead; over all passes, convergence does.
    guess = min(GUESSES, key=lambda guess: sum(math.log(error + 1e-9) for error in guesses[guess]))
    others = probe.chunks([width for width in widths if width != trial_width], guess, paying)
    windows = tuple(_windows(probe, cost, guess, budget, fixed=fixed or probe.batch > 1))
    return BlockCandidates(probe.block.index, probe.count, guess, guesses, (*trials[guess], *others), windows)


def paying_passes(cost: BlockCost) -> dict[int, int]:
    """By width, the number of passes of a chunk that take no longer than its tokens one by one."""
    passes = {run.tokens: math.floor(run.tokens * cost.step_milliseconds / run.milliseconds) for run in cost.runs}
    return {width: min(width, count) for width, count in passes.items() if count}


def block_curve(curves: Sequence[ChunkCurve], width: int) -> tuple[float, ...]:
    """Root of the errors of all chunks of a width after each pass, for a mean image."""
    chosen = [curve for curve in curves if curve.tokens == width or _is_rest(curve, curves, width)]
    most = max((curve.errors.shape[1] for curve in chosen), default=0)
    padded = [np.pad(curve.errors, ((0, 0), (0, most - curve.errors.shape[1])), mode="edge") for curve in chosen]
    return tuple(float(value) for value in np.sqrt(np.sum(padded, axis=0).mean(axis=0))) if padded else ()


def _is_rest(curve: ChunkCurve, curves: Sequence[ChunkCurve], width: int) -> bool:
    """Whether a curve is of the shorter chunk at the end of a row of this width."""
    end = max(other.start + other.tokens for other in curves)
    return curve.tokens < width and curve.start % width == 0 and curve.start + curve.tokens == end


def _windows(probe: BlockProbe, cost: BlockCost, guess: Guess, budget: float, *, fixed: bool) -> Iterator[WindowTrial]:
    scale = math.sqrt(probe.energy / probe.tokens[0].size)
    alone = probe.count * cost.step_milliseconds
    for width in sorted({min(width, probe.count) for width in WINDOW_WIDTHS if width <= cost.runs[-1].tokens}):
        for tolerance in WINDOW_TOLERANCES:
            window = Window(tokens=probe.count, width=width, tolerance=tolerance * scale, guess=guess)
            trial = probe.window(window)
            if trial.passes * cost.run(width) > alone:
                break  # tighter ones take longer still
            steady = probe.window(envelope(trial))
            yield from (steady,) if fixed else (trial, steady)
            if steady.error < (budget / 30) ** 2:
                break


def candidate_edges(
    found: BlockCandidates, cost: BlockCost, first: int, batch: int, gains: Mapping[str, float], *, fixed: bool
) -> Iterator[Edge[tuple[int, Segment]]]:
    """Every edge over the block's tokens, the first of which is token `first` of the whole plan.

    Args:
        batch: Images decoded together.
        gains: By kind of segment, the error of the finished sample over that of the block's tokens.
        fixed: Whether all chunks must have a fixed number of passes.
    """

    def edge(start: int, segment: Segment, error: float) -> Edge[tuple[int, Segment]]:
        milliseconds = segment_milliseconds(segment, cost)
        assert milliseconds is not None
        added = 0.0 if segment.kind == "steps" else error * gains[segment.kind] ** 2
        begin = first + start
        return Edge(begin, begin + segment.tokens, milliseconds, added, (found.block, segment))

    for token in range(found.tokens):
        yield edge(token, Steps(tokens=1), 0.0)
    for curve in found.curves:
        total = curve.errors.shape[1]
        for number in range(total):
            steady = Chunk(tokens=curve.tokens, passes=number + 1, guess=found.guess)
            yield edge(curve.start, steady, float(curve.errors[:, number].mean()))
        if not fixed:
            for tolerance in TOLERANCES:
                adaptive, error = _adaptive(curve, tolerance, batch, found.guess)
                yield edge(curve.start, adaptive, error)
    for trial in found.windows:
        yield edge(0, trial.window.model_copy(update={"expected": trial.passes}), trial.error)


def _adaptive(curve: ChunkCurve, tolerance: float, batch: int, guess: Guess) -> tuple[Chunk, float]:
    """A chunk that ends at a tolerance, with the passes it takes on average, and its error."""
    images, total = curve.changes.shape
    converged = curve.changes < tolerance
    ends = np.where(converged.any(axis=1), converged.argmax(axis=1), total - 1)
    error = float(curve.errors[np.arange(images), ends].mean())
    passes = float((ends + 1).reshape(-1, batch).max(axis=1).mean())
    chunk = Chunk(tokens=curve.tokens, passes=total, tolerance=tolerance, guess=guess, expected=passes)
    return chunk, error
