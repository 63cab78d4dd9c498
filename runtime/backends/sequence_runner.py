"""What every backend does alike: the order of runs that decode one flow block's sequence.

A backend adds buffers and a way to run the step graph. Everything here is host work per sequence or per Jacobi iteration,
never per token: `advance`, the hot loop, belongs to the backend.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.base import BlockInputs
from starflow.runtime.decode_plan import Jacobi
from starflow.runtime.errors import BackendError
from starflow.runtime.manifest import Block, GraphSpec


class SequenceRunner(ABC):
    """A `BlockRunner` over the step graph of one flow block.

    Buffers go by the names of the graph's inputs and outputs. Those whose shape holds the number of tokens S exist once
    for every S that occurs; `previous` of S = 1 always holds the token before the next one.

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
    def store(self, name: str, value: NDArray | np.float32, count: int = 1) -> None:
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

    # The BlockRunner protocol

    def prefill(self, inputs: BlockInputs) -> None:
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
        self.seek(0)
        for start in range(0, block.prefix, self.max_chunk):
            assert inputs.condition is not None
            part = inputs.condition[:, start : min(start + self.max_chunk, block.prefix)]
            self.store("condition", part, part.shape[1])
            self.run(part.shape[1])
            self.seek(start + part.shape[1])
        if block.first_token:
            self.store("previous", self._first)

    def iterate(self, chunk: int, jacobi: Jacobi) -> list[float]:
        if chunk == 1:  # one pass is exact, and the single-step buffers feed themselves
            self.advance(1)
            return [0.0]
        start = self.tell()
        old = self._noise[:, start : start + chunk]
        previous = np.concatenate([self.fetch("previous"), old[:, :-1]], axis=1)
        changes: list[float] = []
        for _ in range(jacobi.max_iterations):
            previous[:, 1:] = old[:, :-1]
            self.store("previous", previous, chunk)
            self.run(chunk)
            new = self.fetch("x", chunk).copy()
            # A value that is not finite is reported with its block, once the sequence is read.
            with np.errstate(all="ignore"):
                changes.append(float(np.square(new - old).mean() / np.square(new).mean()))
            old = new
            if not changes[-1] >= jacobi.threshold:
                break
        self.store("previous", old[:, -1:])
        self.seek(start + chunk)
        return changes

    def read(self) -> NDArray:
        samples = self.fetch("samples")[:, 0, self.block.prefix :]
        return np.concatenate([self._first, samples], axis=1)


def assert_in_place(runner: SequenceRunner) -> None:
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
