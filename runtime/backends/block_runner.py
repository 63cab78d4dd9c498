"""The interface of a backend for autoregressive flows: one flow block, decoded token by token or several tokens together.

This module holds the order of runs, once for all backends; a backend adds buffers and a way to run the step graph. The host works
here per sequence or per Jacobi iteration, never per token: the hot loop, `advance`, belongs to the backend.
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

MARK = 7  # a value that no cache holds after a step


@dataclass(frozen=True)
class BlockInputs:
    """The inputs of one flow block for a sequence."""

    noise: NDArray  # [B, T, D] float32 in block order
    # [rows, m, width] float32, [conditional, null] if the block is guided; None for a block without prefix.
    condition: NDArray | None
    label: NDArray | None  # [rows] int64, for models conditioned on a class index
    # Other inputs per image, by role: guidance weights [B] and inverse temperature [rows], float32.
    scalars: dict[str, NDArray]


class BlockRunner(ABC):
    """Runs the step graph of one flow block. It owns buffers and caches, and keeps the position between calls.

    A sampling loop calls `prefill`, then `advance` and `iterate` until all tokens are decoded, then `read`.

    Buffers have the names of the graph's inputs and outputs. A buffer whose shape depends on the number of tokens S exists for
    each S that occurs, the others exist once. `previous` for S = 1 always holds the token before the next one: nothing reads it
    after the token is computed, so the token output shares its buffer, and a step feeds the next one.

    Args:
        graph: Its step graph in the chosen variant.
        max_chunk: Largest number of tokens in one run.
        max_prefill: The same for runs over the condition, which begin at position 0; None takes `max_chunk`.
    """

    def __init__(self, block: Block, graph: GraphSpec, max_chunk: int, max_prefill: int | None = None) -> None:
        self.block, self.graph, self.max_chunk = block, graph, max_chunk
        self.max_prefill = max_chunk if max_prefill is None else max_prefill
        self.specs = {spec.name: spec for spec in (*graph.inputs, *graph.outputs)}

    def buffer_key(self, name: str, count: int) -> tuple[str, int]:
        """The tensor and the S under which a buffer is kept."""
        if name == "x" and count == 1:
            return "previous", 1
        return name, count if "S" in self.specs[name].shape else 1

    # What a backend adds

    @abstractmethod
    def store(self, name: str, value: ArrayLike, count: int = 1) -> None:
        """Fill an input buffer, broadcasting; `count` is S if the buffer depends on it."""

    @abstractmethod
    def fetch(self, name: str, count: int = 1) -> NDArray:
        """The content of a buffer on the host, which may be a view that the next run changes."""

    @abstractmethod
    def run(self, count: int) -> None:
        """Run S = `count` tokens at the current position, without moving it."""

    @abstractmethod
    def seek(self, position: int) -> None:
        """Set the position of the next run."""

    @abstractmethod
    def tell(self) -> int:
        """The position of the next run."""

    @abstractmethod
    def advance(self, steps: int) -> None:
        """Decode the next `steps` tokens one by one."""

    def clear(self) -> None:
        """Zero the caches: NaN or infinity would reach later sequences through masked positions."""
        for spec in self.graph.inputs:
            if spec.role == "cache":
                self.store(spec.name, 0)

    # Decoding a sequence

    def prefill(self, inputs: BlockInputs) -> None:
        """Start a sequence: store its inputs and write the condition into the caches."""
        block, tokens = self.block, inputs.noise
        for name, value in inputs.scalars.items():
            if name in self.specs:
                self.store(name, value)
        if inputs.label is not None:
            self.store("label", inputs.label)
        self._noise = np.zeros((tokens.shape[0], block.capacity, tokens.shape[2]), np.float32)
        self._noise[:, block.prefix :] = tokens[:, block.first_token :]
        self.store("noise", self._noise)
        self._first = tokens[:, : block.first_token].copy()
        self._accepted: dict[
            int, NDArray
        ] = {}  # tokens by position, for those that a later pass overwrote in `samples`
        self.seek(0)
        for start in range(0, block.prefix, self.max_prefill):
            assert inputs.condition is not None
            part = inputs.condition[:, start : min(start + self.max_prefill, block.prefix)]
            self.store("condition", part, part.shape[1])
            self.run(part.shape[1])
            self.seek(start + part.shape[1])
        if block.first_token:
            self.store("previous", self._first)

    def iterate(self, segment: Iterated, guess: NDArray | None = None) -> int:
        """Decode the tokens of a segment together and return the number of passes.

        `guess` [B, n, D] is the first guess, if it is not the segment's own.
        """
        if segment.tokens == 1:  # one pass is exact, and the single-step buffers feed themselves
            self.advance(1)
            return 1
        start = self.tell()
        first = self._previous(start)
        tokens = self.guess(start, segment.tokens, segment.guess) if guess is None else guess.copy()
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
        """A copy of the decoded sequence, [B, T, D] float32 in block order."""
        samples = self.fetch("samples")[:, 0].copy()
        for start, tokens in self._accepted.items():
            samples[:, start : start + tokens.shape[1]] = tokens
        return np.concatenate([self._first, samples[:, self.block.prefix :]], axis=1)

    def decode_given(self, inputs: BlockInputs, tokens: NDArray, chunk: int | None = None) -> NDArray:
        """Run a sequence whose tokens are given, and return the outputs, [B, T, D] in block order.

        Each position gets the true token before it instead of an output, so a pass over any number of tokens is exact.

        Args:
            tokens: [B, T, D] in block order, the true outputs.
            chunk: Largest number of tokens in a pass; None takes the largest number the graph accepts.
        """
        first = self.block.first_token
        self.prefill(inputs)
        # The graph has its own start token and ignores what precedes the first token.
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
        """Run passes that are fixed in advance; each reads its inputs from `tokens` and writes its outputs there.

        The passes depend on no value, so a backend with tokens on a device may run all of them there.

        Args:
            start: Position of the first token.
            first: [B, 1, D], the token before it.
            tokens: [B, n, D], guesses; updated in place.
            schedule: (first token, number of tokens) of each pass.
        """
        for offset, count in schedule:
            tokens[:, offset : offset + count] = self._run(start, first, tokens, offset, count)

    def _run(self, start: int, first: NDArray, tokens: NDArray, offset: int, count: int) -> NDArray:
        """Run one pass over `count` of the tokens from `offset` on; the outputs, [B, count, D]."""
        before = tokens[:, offset - 1 : offset] if offset else first
        return self.run_on(start + offset, np.concatenate([before, tokens[:, offset : offset + count - 1]], axis=1))

    def run_on(self, position: int, inputs: NDArray) -> NDArray:
        """Run one pass from a position on, with inputs [B, S, D]. The outputs, [B, S, D], are valid until the next run."""
        count = inputs.shape[1]
        if self.tell() != position:
            self.seek(position)
        self.store("previous", inputs, count)
        self.run(count)
        return self.fetch("x", count)

    def _previous(self, start: int) -> NDArray:
        """The token before `start`, or zeros if there is none; the graph replaces them by its start token."""
        token = self.fetch("previous").copy()
        return token if start > self.block.prefix or self.block.first_token else np.zeros_like(token)

    def guess(self, start: int, count: int, kind: Guess) -> NDArray:
        """The first guess for `count` tokens from position `start` on, [B, count, D]."""
        noise = self._noise[:, start : start + count]
        if kind == "noise":
            return noise.copy()
        if kind == "zeros":
            return np.zeros_like(noise)
        return np.repeat(self._previous(start), count, axis=1)

    def _converge(self, start: int, first: NDArray, tokens: NDArray, segment: Chunk) -> int:
        """Run passes over a chunk until every image has converged. An image that has converged keeps its tokens."""
        assert segment.tolerance is not None
        inputs = np.concatenate([first, tokens[:, :-1]], axis=1)
        exact = segment.caches == "exact"
        going = np.ones(len(tokens), bool)
        fresh = np.zeros(len(tokens), bool)  # images whose caches hold the keys of their accepted tokens
        done = 0
        while going.any() and done < segment.passes:
            # `reference` caches keep the keys of the inputs of an image's last pass.
            renewed = slice(None) if exact else going
            inputs[renewed, 1:] = tokens[renewed, :-1]
            new = self.run_on(start, inputs)
            change = _change(new, tokens, segment)
            fresh = np.where(going, (new == tokens).all(axis=(1, 2)), exact)
            tokens[going] = new[going]
            # NaN ends the iteration as well; the sampling loop reports it after it has read the sequence.
            going &= change >= segment.tolerance
            done += 1
        if exact:
            self._accepted[start] = tokens
            if done < segment.tokens and not fresh.all():
                done += self._refresh(start, first, tokens)
        return done

    def _refresh(self, start: int, first: NDArray, tokens: NDArray) -> int:
        """Write the keys of accepted tokens into the caches, by a pass whose outputs are not used."""
        self._accepted[start] = tokens
        self._run(start, first, tokens, 0, tokens.shape[1])
        return 1

    def slide(self, start: int, first: NDArray, tokens: NDArray, window: Window) -> tuple[int, ...]:
        """Decode by a window: the number of tokens it moved after each pass; see `run_schedule` for the other arguments.

        With a tolerance and several images, the window moves past a token once it has converged in all images.
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
            # The first token had final inputs, and so had each later one whose predecessors did not change.
            moving = np.flatnonzero(~(change[:-1] < window.tolerance))
            advances.append(int(moving[0]) + 1 if moving.size else count)
            offset += advances[-1]
        return tuple(advances)


def _change(new: NDArray, old: NDArray, chunk: Chunk) -> NDArray:
    """The change of the tokens, one value for each image or one for all."""
    axes = (1, 2) if chunk.converged == "image" else None
    with np.errstate(all="ignore"):
        if chunk.norm == "max":
            return np.asarray(np.abs(new - old).max(axis=axes))
        return np.asarray(np.square(new - old).mean(axis=axes) / np.square(new).mean(axis=axes))


def assert_steps(runner: BlockRunner) -> None:
    """Run the last two steps on marked caches: only their positions may change, in the memory that was bound.

    Raises:
        BackendError: this engine copies caches, or loses the position between two steps.
    """
    capacity, block = runner.block.capacity, runner.block.index
    first = max(capacity - 2, 0)
    names = [spec.name for spec in runner.graph.inputs if spec.role in ("cache", "samples")]
    for name in names:
        runner.store(name, MARK)
    runner.seek(first)
    runner.advance(capacity - first)
    for name in names:
        cache = runner.fetch(name)
        written = (cache != MARK).any(axis=tuple(axis for axis in range(cache.ndim) if axis != cache.ndim - 2))
        if written[:first].any() or not written[first]:
            raise BackendError(f"{name} of flow block {block} is not updated in place by this engine")
        if not written[first:capacity].all():
            raise BackendError(f"flow block {block}: this engine does not move on from one step to the next")
    for name in (*names, "previous"):
        runner.store(name, 0)
    runner.seek(0)
