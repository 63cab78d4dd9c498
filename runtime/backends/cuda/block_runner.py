"""A flow block on a GPU: every buffer is allocated once, and one CUDA graph for each number of tokens is replayed.

A step feeds the next one on the device. So the whole loop of a block is launches of one graph, of two steps: nothing is copied and
nobody waits until the sequence is read. TensorRT and ONNX Runtime share this loop; what a graph holds is theirs.
"""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starflow.runtime.backends.block_runner import BlockRunner, assert_steps
from starflow.runtime.backends.cuda.buffers import GraphBuffers
from starflow.runtime.backends.cuda.capture import Capture
from starflow.runtime.backends.cuda.device import Graph, Repeated, Stream
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.graph_spec import GraphSpec


class StepEngine(Protocol):
    """What runs the step graph of a flow block on a GPU."""

    graph: GraphSpec
    checked: bool  # whether two steps of it have been looked at

    @property
    def max_tokens(self) -> int:
        """Most tokens of one run."""

    @property
    def steps_lack_condition(self) -> bool:
        """Whether runs behind the condition take none, so that one token of the condition is another kind of run."""


class CapturedBlockRunner(BlockRunner):
    """One flow block on the device.

    Args:
        max_chunk: Largest number of tokens in one run by the manifest; prefill also keeps to the limit of the engine.
        stream: The stream that `capture` captures in.
    """

    def __init__(
        self,
        engine: StepEngine,
        block: Block,
        max_chunk: int,
        stream: Stream,
        capture: Capture,
        max_prefill: int | None = None,
    ) -> None:
        super().__init__(block, engine.graph, min(max_chunk, engine.max_tokens), max_prefill)
        self._engine, self._capture, self._stream = engine, capture, stream
        self._batch = next(int(spec.shape[0]) for spec in engine.graph.inputs if spec.name == "previous")
        self._graphs: dict[tuple[int, bool], Graph | Repeated] = {}
        self._at = 0
        with ExitStack() as self._resources:
            most, what = max(max_chunk, self.max_prefill), f"flow block {block.index}"
            self._buffers = self._resources.enter_context(closing(GraphBuffers(stream, engine.graph, most, what)))
            self._graph(1)
            self._two_steps = self._capture_two_steps()
            if not engine.checked:
                assert_steps(self)
                engine.checked = True
            self.seek(0)
            self.clear()  # all of this wrote into the caches
            self._resources = self._resources.pop_all()

    def close(self) -> None:
        self._graphs.clear()
        self._resources.close()

    def store(self, name: str, value: ArrayLike, count: int = 1) -> None:
        """Fill an input; a cache, whose type need not exist in NumPy, is filled with bytes of the value."""
        if self.specs[name].role == "cache":
            self._stream.gpu.select()
            self._stream.fill(self._buffers[name].memory, int(np.asarray(value)))
        else:
            self._buffers[name].store(value, count)

    def fetch(self, name: str, count: int = 1) -> NDArray:
        """The content of a tensor; of a cache the bytes, [rows, heads, capacity, bytes of a head]."""
        if self.specs[name].role == "cache":
            return self._buffers[name].raw()
        return self._buffers[name].fetch(count)

    def run(self, count: int) -> None:
        self._stream.gpu.select()
        self._graph(count, prefilling=self._at < self.block.prefix).launch()
        if count == 1:  # its graph moved the position on
            self.seek(self._at)

    def seek(self, position: int) -> None:
        self._at = position
        self.store("position", position)

    def tell(self) -> int:
        return self._at

    def advance(self, steps: int) -> None:
        self._stream.gpu.select()
        pairs, odd = divmod(steps, 2)
        self._two_steps.launch(pairs)
        self._graph(1).launch(odd)
        self._at += steps

    def run_schedule(self, start: int, first: NDArray, tokens: NDArray, schedule: Sequence[tuple[int, int]]) -> None:
        """Passes over a whole chunk are launches of one graph. Passes of a window move, so they go through the host."""
        count = tokens.shape[1]
        if any(tokens_of_pass != (0, count) for tokens_of_pass in schedule):
            super().run_schedule(start, first, tokens, schedule)
            return
        if self._at != start:
            self.seek(start)
        self.store("previous", np.concatenate([first, tokens[:, :-1]], axis=1), count)
        self._graph(count).launch(len(schedule))
        tokens[...] = self.fetch("x", count)

    def clear(self) -> None:
        self._stream.gpu.select()
        for memory in self._buffers.caches():
            self._stream.zero(memory)

    def synchronize(self) -> None:
        """Wait until everything that was launched is done."""
        self._stream.synchronize()

    @property
    def kernels_per_step(self) -> int | None:
        """Number of kernels that decode one token; None if a step could not be captured."""
        return self._graph(1).kernels

    def _capture_two_steps(self) -> Graph | Repeated:
        """Two steps that feed each other: what one writes, the other reads, so that nothing is copied."""
        there = self._buffers.addresses()
        back = there | {"previous": there["x"], "x": there["previous"]}
        back |= {"position": there["position_next"], "position_next": there["position"]}
        return self._capture(1, [there, back], self._resources, lambda: None, conditioned=False)

    def _graph(self, count: int, *, prefilling: bool = False) -> Graph | Repeated:
        """A run of `count` tokens, followed by the copies that make the next run the next step or, for several tokens, pass.

        A single token of the condition has a graph of its own, if steps do not read the condition.
        """
        conditioned = count > 1 or (prefilling and self._engine.steps_lack_condition)
        key = (count, conditioned)
        if key not in self._graphs:
            self._graphs[key] = self._capture(
                count,
                [self._buffers.addresses()],
                self._resources,
                lambda: self._feed_back(count),
                conditioned=conditioned,
            )
        return self._graphs[key]

    def _feed_back(self, count: int) -> None:
        if count == 1:
            for target, source in (("previous", "x"), ("position", "position_next")):
                into, out_of = self._buffers[target], self._buffers[source]
                self._stream.copy(into.memory, out_of.memory, into.size(1))
            return
        # Every token of x except the last of each image goes to the place of the next: previous[:, 1:] = x[:, :-1].
        into, out_of = self._buffers["previous"], self._buffers["x"]
        token = into.size(1) // self._batch
        for image in range(0, into.size(count), token * count):
            self._stream.copy(
                into.memory, out_of.memory, token * (count - 1), target_offset=image + token, source_offset=image
            )
