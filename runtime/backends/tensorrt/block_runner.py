"""TensorRT on a GPU, a flow block: every buffer allocated once, one CUDA graph per number of tokens, replayed step by step.

A step feeds the next one on the device, so a block's whole loop is launches of one graph: no copy from the host and no waiting
until its sequence is read.
"""

from collections.abc import Sequence
from contextlib import ExitStack, closing

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.block_runner import BlockRunner
from starflow.runtime.backends.cuda.buffers import StepBuffers
from starflow.runtime.backends.cuda.device import DeviceMemory, Graph, Stream
from starflow.runtime.backends.tensorrt.engine import BlockEngine
from starflow.runtime.bundle.autoregressive_manifest import Block


class TensorrtBlockRunner(BlockRunner):
    """One flow block on the device.

    Args:
        engine: The block's engine.
        block: The block.
        max_chunk: Most tokens of one run, by the manifest; prefill keeps to the engine's limit as well.
        scratch: Memory for what lies between a run's inputs and outputs. Those who share it share `stream`, which keeps their
            runs apart.
        stream: Where everything runs.
    """

    def __init__(
        self, engine: BlockEngine, block: Block, max_chunk: int, scratch: DeviceMemory, stream: Stream
    ) -> None:
        super().__init__(block, engine.graph, min(max_chunk, engine.max_tokens))
        self._engine, self._scratch, self._stream = engine, scratch, stream
        self._batch = next(int(spec.shape[0]) for spec in engine.graph.inputs if spec.name == "previous")
        self._graphs: dict[int, Graph] = {}
        self._at = 0
        with ExitStack() as self._resources:
            self._buffers = self._resources.enter_context(closing(StepBuffers(stream, engine.graph, max_chunk)))
            self._graph(1)
            self.clear()  # capturing wrote into the caches
            self._resources = self._resources.pop_all()

    def close(self) -> None:
        self._graphs.clear()
        self._resources.close()

    def store(self, name: str, value: NDArray | np.float32, count: int = 1) -> None:
        self._stream.gpu.select()
        self._buffers[name].store(value, count)

    def fetch(self, name: str, count: int = 1) -> NDArray:
        self._stream.gpu.select()
        return self._buffers[name].fetch(count)

    def run(self, count: int) -> None:
        self._stream.gpu.select()
        self._graph(count).launch()
        if count == 1:  # its graph moved on
            self.seek(self._at)

    def seek(self, position: int) -> None:
        self._at = position
        self.store("position", np.array([position]))

    def tell(self) -> int:
        return self._at

    def advance(self, steps: int) -> None:
        self._stream.gpu.select()
        self._graph(1).launch(steps)
        self._at += steps

    def run_schedule(self, start: int, first: NDArray, tokens: NDArray, schedule: Sequence[tuple[int, int]]) -> None:
        """A whole chunk, pass after pass, is launches of one graph; a window's passes move, and go through the host."""
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

    @property
    def kernels_per_step(self) -> int:
        """How many kernels decode one token."""
        return self._graph(1).kernels

    def _graph(self, count: int) -> Graph:
        if count not in self._graphs:
            self._graphs[count] = self._capture(count)
        return self._graphs[count]

    def _capture(self, count: int) -> Graph:
        """Record a run of `count` tokens, with what makes the next run the next step or, of several, the next pass."""
        execution = self._engine.execution(count, self._buffers.addresses(), self._scratch, self._stream)
        self._resources.callback(execution.close)
        # The first run compiles and allocates, which a capture must not. It writes where the run it stands for will write.
        execution.enqueue()
        self._stream.synchronize()
        execution.assert_capturable()

        def work() -> None:
            execution.enqueue()
            if count == 1:
                self._feed_back("previous", "x")
                self._feed_back("position", "position_next")
            else:
                self._feed_tokens(count)

        return self._resources.enter_context(closing(self._stream.capture(work)))

    def _feed_back(self, target: str, source: str) -> None:
        into, out_of = self._buffers[target], self._buffers[source]
        self._stream.copy(into.memory, out_of.memory, into.size(1))

    def _feed_tokens(self, count: int) -> None:
        """Every token of x but the last of each image becomes the one before the next: previous[:, 1:] = x[:, :-1]."""
        into, out_of = self._buffers["previous"], self._buffers["x"]
        whole = into.size(count)
        token = into.size(1) // self._batch
        for image in range(0, whole, token * count):
            self._stream.copy(
                into.memory, out_of.memory, token * (count - 1), target_offset=image + token, source_offset=image
            )
