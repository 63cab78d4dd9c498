"""The interface of a backend for autoregressive flows: one flow block, decoded token by token or several tokens together.

The order of runs is written here, once for every backend; a backend adds buffers and a way to run the step graph. Everything here
is host work per sequence or per Jacobi iteration, never per token: `advance`, the hot loop, belongs to the backend.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.graph_spec import GraphSpec
from starflow.runtime.plain.errors import BackendError
from starflow.runtime.plans.decode_plan import Chunk, Guess, Iterated, Window


@dataclass(frozen=True)
class BlockInputs:
    """What one flow block gets before its first token.

    Attributes:
        noise: [B, T, D] float32 in block order.
        condition: [rows, m, width] float32, [conditional, null] where the block is guided; for a block with a prefix.
        label: [rows] int64, for a block conditioned by class vector.
        scalars: Every other per-image input by role: guidance weights [B], inverse temperature [rows], float32.
    """

    noise: NDArray
    condition: NDArray | None
    label: NDArray | None
    scalars: dict[str, NDArray]


class BlockRunner(ABC):
    """Runs the step graph of one flow block: owns its buffers and caches, and keeps the position between calls.

    A sampling loop calls `prefill`, then `advance` and `iterate` until all tokens are decoded, then `read`.

    Buffers go by the names of the graph's inputs and outputs. Those whose shape holds the number of tokens S exist once for every
    S that occurs; `previous` of S = 1 always holds the token before the next one.

    Args:
        block: The flow block.
        graph: Its step graph in the chosen variant.
        max_chunk: Most tokens of one run.
    """

    def __init__(self, block: Block, graph: GraphSpec, max_chunk: int) -> None:
        self.block, self.graph, self.max_chunk = block, graph, max_chunk
        self.input_names = frozenset(spec.name for spec in graph.inputs)

    # What a backend adds

    @abstractmethod
    def store(self, name: str, value: ArrayLike, count: int = 1) -> None:
        """Fill an input buffer, broadcasting; `count` is the S of a buffer that depends on it."""

    @abstractmethod
    def fetch(self, name: str, count: int = 1) -> NDArray:
        """A buffer's content on the host; it may be a view that the next run changes."""

    @abstractmethod
    def run(self, count: int) -> None:
        """One run over S = `count` tokens at the current position, which stays where it is."""

    @abstractmethod
    def seek(self, position: int) -> None:
        """Set the position of the next run."""

    @abstractmethod
    def tell(self) -> int:
        """The position of the next run."""

    @abstractmethod
    def advance(self, steps: int) -> None:
        """Decode the next `steps` tokens one by one."""

    @abstractmethod
    def clear(self) -> None:
        """Zero the caches: a value that is not finite would reach later sequences through masked positions."""

    # Decoding a sequence

    def prefill(self, inputs: BlockInputs) -> None:
        """Start a sequence: take its inputs and write the condition into the caches."""
        block, tokens = self.block, inputs.noise
        for name, value in inputs.scalars.items():
            if name in self.input_names:
                self.store(name, value)
        if inputs.label is not None:
            self.store("label", inputs.label)
        self._noise = np.zeros((tokens.shape[0], block.capacity, tokens.shape[2]), np.float32)
        self._noise[:, block.prefix :] = tokens[:, block.first_token :]
        self.store("noise", self._noise)
        self._first = tokens[:, : block.first_token].copy()
        self._accepted: dict[int, NDArray] = {}  # tokens by position, where `samples` holds those of a later pass
        self.seek(0)
        for start in range(0, block.prefix, self.max_chunk):
            assert inputs.condition is not None
            part = inputs.condition[:, start : min(start + self.max_chunk, block.prefix)]
            self.store("condition", part, part.shape[1])
            self.run(part.shape[1])
            self.seek(start + part.shape[1])
        if block.first_token:
            self.store("previous", self._first)

    def iterate(self, segment: Iterated) -> int:
        """Decode the segment's tokens together; return the number of passes that took."""
        if segment.tokens == 1:  # one pass is exact, and the single-step buffers feed themselves
            self.advance(1)
            return 1
        start = self.tell()
        first, tokens = self._previous(start), self.guess(start, segment.tokens, segment.guess)
        if isinstance(segment, Window):
            passes = len(self.slide(start, first, tokens, segment))
        elif segment.tolerance is not None:
            passes = self._converge(start, first, tokens, segment)
        else:
            self.run_schedule(start, first, tokens, ((0, segment.tokens),) * segment.passes)
            passes = segment.passes
            if segment.caches == "exact" and passes < segment.tokens:
                passes += self._refresh(start, first, tokens)
        self.store("previous", tokens[:, -1:])
        self.seek(start + segment.tokens)
        return passes

    def read(self) -> NDArray:
        """The decoded sequence, [B, T, D] float32 in block order (a copy)."""
        samples = self.fetch("samples")[:, 0].copy()
        for start, tokens in self._accepted.items():
            samples[:, start : start + tokens.shape[1]] = tokens
        return np.concatenate([self._first, samples[:, self.block.prefix :]], axis=1)

    def decode_given(self, inputs: BlockInputs, tokens: NDArray, chunk: int | None = None) -> NDArray:
        """Run a sequence with every input given, [B, T, D] in block order: nothing that comes out is fed back.

        Each position gets the token that truly comes before it, so one pass over any number of them is exact.

        Args:
            inputs: What the block starts with.
            tokens: [B, T, D] in block order, the right outputs.
            chunk: Most tokens of a pass; None takes as many as the graph does.
        """
        first = self.block.first_token
        self.prefill(inputs)
        # The start token is the graph's own: what stands before the first token does not count.
        start = np.zeros_like(tokens[:, : 1 - first])
        previous = np.concatenate([start, tokens[:, :-1]], axis=1)
        parts = [tokens[:, :first]]
        size = min(chunk or self.max_chunk, self.max_chunk)
        for begin in range(0, previous.shape[1], size):
            part = previous[:, begin : begin + size]
            parts.append(self.run_on(self.tell(), part).copy())
            self.seek(self.tell() + part.shape[1])
        return np.concatenate(parts, axis=1)

    # Passes over several tokens

    def run_schedule(self, start: int, first: NDArray, tokens: NDArray, schedule: Sequence[tuple[int, int]]) -> None:
        """Passes that are known beforehand: each takes its inputs from `tokens` and puts its outputs there.

        Nothing depends on a value, so a backend whose tokens lie on a device may do all of it there.

        Args:
            start: Position of the first token.
            first: [B, 1, D], the token before it.
            tokens: [B, n, D], guesses; updated in place.
            schedule: (first token, number of tokens) of each pass.
        """
        for offset, count in schedule:
            tokens[:, offset : offset + count] = self._run(start, first, tokens, offset, count)

    def _run(self, start: int, first: NDArray, tokens: NDArray, offset: int, count: int) -> NDArray:
        """One pass over `count` of the tokens; what came out [B, count, D]."""
        before = tokens[:, offset - 1 : offset] if offset else first
        return self.run_on(start + offset, np.concatenate([before, tokens[:, offset : offset + count - 1]], axis=1))

    def run_on(self, position: int, inputs: NDArray) -> NDArray:
        """One pass from a position on, with given inputs [B, S, D]; what came out, [B, S, D], until the next run."""
        count = inputs.shape[1]
        if self.tell() != position:
            self.seek(position)
        self.store("previous", inputs, count)
        self.run(count)
        return self.fetch("x", count)

    def _previous(self, start: int) -> NDArray:
        """The token before `start`; zeros where there is none, which the graph replaces by its start token."""
        token = self.fetch("previous").copy()
        return token if start > self.block.prefix or self.block.first_token else np.zeros_like(token)

    def guess(self, start: int, count: int, kind: Guess) -> NDArray:
        """What `count` tokens from position `start` on are taken for at first, [B, count, D]."""
        noise = self._noise[:, start : start + count]
        if kind == "noise":
            return noise.copy()
        if kind == "zeros":
            return np.zeros_like(noise)
        return np.repeat(self._previous(start), count, axis=1)

    def _converge(self, start: int, first: NDArray, tokens: NDArray, segment: Chunk) -> int:
        """Passes over a chunk until every image has converged; an image that has is left as it is, whatever others do."""
        assert segment.tolerance is not None
        inputs = np.concatenate([first, tokens[:, :-1]], axis=1)
        exact = segment.caches == "exact"
        going = np.ones(len(tokens), bool)
        fresh = np.zeros(len(tokens), bool)  # images whose keys are those of their accepted tokens
        done = 0
        while going.any() and done < segment.passes:
            # `reference`: the keys of an image stay those of the inputs of its last pass.
            renewed = slice(None) if exact else going
            inputs[renewed, 1:] = tokens[renewed, :-1]
            new = self.run_on(start, inputs)
            change = _change(new, tokens, segment)
            fresh = np.where(going, (new == tokens).all(axis=(1, 2)), exact)
            tokens[going] = new[going]
            # A value that is not finite ends it, too; it is reported with its block, once the sequence is read.
            going &= change >= segment.tolerance
            done += 1
        if exact:
            self._accepted[start] = tokens
            if done < segment.tokens and not fresh.all():
                done += self._refresh(start, first, tokens)
        return done

    def _refresh(self, start: int, first: NDArray, tokens: NDArray) -> int:
        """Write the keys of accepted tokens: a pass whose outputs, one iteration further, do not count."""
        self._accepted[start] = tokens
        self._run(start, first, tokens, 0, tokens.shape[1])
        return 1

    def slide(self, start: int, first: NDArray, tokens: NDArray, window: Window) -> tuple[int, ...]:
        """Decode by a window.

        Args:
            start: Position of the first token.
            first: [B, 1, D], the token before it.
            tokens: [B, n, D], guesses; updated in place.
            window: The window. With a tolerance and several images, it moves past a token once all of them have it.

        Returns:
            By how many tokens it moved after each pass.
        """
        if window.tolerance is None:
            self.run_schedule(start, first, tokens, window.schedule())
            return window.advances or ()
        advances: list[int] = []
        offset = 0
        while offset < window.tokens:
            count = min(window.width, window.tokens - offset)
            old = tokens[:, offset : offset + count]
            new = self._run(start, first, tokens, offset, count)
            with np.errstate(all="ignore"):
                change = np.sqrt(np.square(new - old).mean(axis=2)).max(axis=0)
            tokens[:, offset : offset + count] = new
            # The first token had final inputs; so had each behind it whose predecessors did not change.
            moving = np.flatnonzero(~(change[:-1] < window.tolerance))
            advances.append(int(moving[0]) + 1 if moving.size else count)
            offset += advances[-1]
        return tuple(advances)


def _change(new: NDArray, old: NDArray, chunk: Chunk) -> NDArray:
    """How far tokens moved, one value for each image or one for all."""
    axes = (1, 2) if chunk.converged == "image" else None
    with np.errstate(all="ignore"):
        if chunk.norm == "max":
            return np.asarray(np.abs(new - old).max(axis=axes))
        return np.asarray(np.square(new - old).mean(axis=axes) / np.square(new).mean(axis=axes))


def assert_in_place(runner: BlockRunner) -> None:
    """Run one step on marked caches: exactly the written position may change, in the very memory that was bound.

    Raises:
        BackendError: this release of the engine copies.
    """
    mark = 7.0
    last = runner.block.capacity - 1
    names = [spec.name for spec in runner.graph.inputs if spec.role in ("cache", "samples")]
    for name in names:
        runner.store(name, np.float32(mark))
    runner.seek(last)
    runner.run(1)
    for name in names:
        cache = runner.fetch(name)
        untouched = bool((cache[..., :last, :] == mark).all())
        written = bool((cache[..., last, :] != mark).any())
        if not (untouched and written):
            raise BackendError(f"{name} of flow block {runner.block.index} is not updated in place by this engine")
    for name in (*names, "previous"):
        runner.store(name, np.float32(0))
    runner.seek(0)


def assert_steps(runner: BlockRunner) -> None:
    """Run two steps on marked samples: they must write two positions, the second after the first.

    Raises:
        BackendError: this engine lost the position between two steps.
    """
    mark = np.float32(7.0)
    last = runner.block.capacity - 1
    if last < 1:
        return
    runner.store("samples", mark)
    runner.seek(last - 1)
    runner.advance(2)
    written = (runner.fetch("samples") != mark).any(axis=(0, 1, 3))
    if not written[-2:].all() or written[:-2].any():
        raise BackendError(f"flow block {runner.block.index}: this engine does not move on from one step to the next")
    runner.clear()
    for name in ("samples", "previous"):
        runner.store(name, np.float32(0))
    runner.seek(0)
