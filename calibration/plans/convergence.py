"""How fast Jacobi iteration comes to the sequential answer, measured on samples drawn from the model.

Each chunk is measured behind the right tokens ("teacher forced"). The caches of a block decoded token by token hold the right
keys; a chunk is iterated on them from its guess, and one more pass restores its right keys. So one decoding of a block serves
chunks of all widths, and the error of a chunk is its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from starflow.calibration.cases import check_finite
from starflow.runtime.backends.base import Backend
from starflow.runtime.backends.block_runner import BlockInputs, BlockRunner
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.plans.decode_plan import Chunk, Guess, Segment, Steps, Window
from starflow.runtime.traces.autoregressive import RecordedTrace, decode_block, sample_trace
from starflow.runtime.traces.case import Case

NEGLIGIBLE = 1e-13  # squared relative error below which a chunk is as good as decoded token by token


@dataclass(frozen=True)
class ChunkCurve:
    """Errors and changes of one chunk, pass by pass."""

    start: int  # its first token
    tokens: int  # its width
    # [N, passes] squared distance to the sequential answer after each pass, over the mean squared norm of an image's
    # whole block.
    errors: NDArray[np.float64]
    changes: NDArray[np.float64]  # [N, passes] relative mean square change in each pass


@dataclass(frozen=True)
class WindowTrial:
    """A window as it ran over a whole block."""

    window: Window
    advances: tuple[tuple[int, ...], ...]  # by how many tokens it moved on, pass by pass, for each batch
    error: float  # squared relative error of the block's tokens

    @property
    def passes(self) -> float:
        return float(np.mean([len(advances) for advances in self.advances]))


class BlockProbe:
    """One flow block, with the right answers for a number of batches.

    Args:
        inputs: The block's inputs, batch by batch.
        tokens: [N, T, D] in block order, decoded token by token.
    """

    def __init__(self, runner: BlockRunner, block: Block, inputs: Sequence[BlockInputs], tokens: NDArray) -> None:
        self.runner, self.block, self.inputs = runner, block, inputs
        self.tokens = tokens[:, block.first_token :]
        self.batch = len(tokens) // len(inputs)
        self.energy = float(np.square(self.tokens, dtype=np.float64).sum() / len(tokens))

    @property
    def count(self) -> int:
        """Tokens that are decoded."""
        return self.tokens.shape[1]

    def chunks(self, widths: Sequence[int], guess: Guess, passes: dict[int, int]) -> list[ChunkCurve]:
        """Curves of the chunks of every width, side by side from the first token to the last.

        Args:
            guess: What they start from.
            passes: By width, the number of passes that are worth measuring.
        """
        places: dict[tuple[int, int], int] = {}  # passes by start and tokens: rows may end in the same chunk
        for width in widths:
            for start in range(0, self.count, width):
                place = start, min(width, self.count - start)
                places[place] = max(places.get(place, 0), min(place[1], passes[width]))
        curves: dict[tuple[int, int], list[tuple[NDArray, NDArray]]] = {}
        for right in self._decoded():
            for (start, tokens), most in places.items():
                if tokens > 1:
                    curves.setdefault((start, tokens), []).append(self._iterate(right, start, tokens, guess, most))
        return [
            ChunkCurve(start, tokens, *(np.concatenate(parts) for parts in zip(*found, strict=True)))
            for (start, tokens), found in curves.items()
        ]

    def window(self, window: Window) -> WindowTrial:
        """Run a window over the whole block, for all batches."""
        advances, error = [], 0.0
        start = self.block.prefix
        for number, inputs in enumerate(self.inputs):
            self.runner.prefill(inputs)
            first = inputs.noise[:, :1]  # used only where the first token passes unchanged
            tokens = self.runner.guess(start, self.count, window.guess)
            advances.append(self.runner.slide(start, first, tokens, window))
            error += float(np.square(tokens - self._right(number), dtype=np.float64).sum())
        return WindowTrial(window, tuple(advances), error / len(self.tokens) / self.energy)

    def decode(self, segments: Sequence[Segment]) -> float:
        """Squared relative error of the block's tokens, decoded by these segments."""
        error = 0.0
        for number, inputs in enumerate(self.inputs):
            self.runner.prefill(inputs)
            for segment in segments:
                if isinstance(segment, Steps):
                    self.runner.advance(segment.tokens)
                elif isinstance(segment, Chunk | Window):  # a search finds no students
                    self.runner.iterate(segment)
            found = self.runner.read()[:, self.block.first_token :]
            error += float(np.square(found - self._right(number), dtype=np.float64).sum())
        return error / len(self.tokens) / self.energy

    def _right(self, number: int) -> NDArray:
        return self.tokens[number * self.batch : (number + 1) * self.batch]

    def _decoded(self) -> Iterator[NDArray]:
        """The right tokens of each batch, while the caches hold their keys."""
        for number, inputs in enumerate(self.inputs):
            decode_block(self.runner, self.block, inputs)
            before = inputs.noise[:, :1] if self.block.first_token else np.zeros_like(inputs.noise[:, :1])
            yield np.concatenate([before, self._right(number)], axis=1)

    def _iterate(
        self, right: NDArray, start: int, tokens: int, guess: Guess, most: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Errors and changes [B, most] of one chunk; `right` has the token before the first one in front."""
        runner, position = self.runner, self.block.prefix + start
        inputs, answer = right[:, start : start + tokens].copy(), right[:, start + 1 : start + tokens + 1]
        runner.store("previous", inputs[:, :1])
        old = runner.guess(position, tokens, guess)
        errors = np.zeros((len(right), most))
        changes = np.zeros((len(right), most))
        for number in range(most):
            inputs[:, 1:] = old[:, :-1]
            new = runner.run_on(position, inputs).copy()
            changes[:, number] = np.square(new - old).mean(axis=(1, 2)) / np.square(new).mean(axis=(1, 2))
            errors[:, number] = np.square(new - answer, dtype=np.float64).sum(axis=(1, 2)) / self.energy
            old = new
            if (errors[:, number] < NEGLIGIBLE).all() and (changes[:, number] < NEGLIGIBLE).all():
                errors[:, number:] = errors[:, number : number + 1]
                break
        runner.run_on(position, right[:, start : start + tokens])
        return errors, changes


def envelope(trial: WindowTrial) -> Window:
    """A window with fixed advances that is never ahead of any batch of a trial with a tolerance."""
    edges = [np.cumsum(advances) for advances in trial.advances]
    most = max(map(len, edges))
    reached = np.stack([np.pad(edge, (0, most - len(edge)), mode="edge") for edge in edges]).min(axis=0)
    advances = tuple(int(step) for step in np.diff(reached, prepend=0))
    return Window(tokens=trial.window.tokens, width=trial.window.width, guess=trial.window.guess, advances=advances)


def probes(
    bundle: Bundle, variant: Variant, backend: Backend, case: Case
) -> tuple[RecordedTrace, dict[int, BlockProbe]]:
    """Draw samples token by token; a probe of every flow block, in sampling order. NotFiniteError if one is not finite."""
    trace = sample_trace(bundle, variant, backend, case)
    found = {}
    for index in trace.tokens:
        check_finite(trace.tokens[index], case)
        runner = backend.block_runner(index)
        # Inputs are recorded as views of what the sampling loop goes on with.
        inputs = [replace(given, noise=given.noise.copy()) for given in trace.inputs[index]]
        found[index] = BlockProbe(runner, bundle.autoregressive.blocks[index], inputs, trace.tokens[index])
    return trace, found
