"""A velocity graph on a GPU: one CUDA graph, replayed for every pass.

State and table of passes lie on the device, and the captured work ends with the copies that make the next launch the next pass.
So nothing is copied from the host, and nobody waits until the state is read. TensorRT and ONNX Runtime share this loop.
"""

from contextlib import ExitStack, closing

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.continuous_runner import STATE, ContinuousRunner
from starflow.runtime.backends.cuda.buffers import GraphBuffers
from starflow.runtime.backends.cuda.capture import Capture
from starflow.runtime.backends.cuda.device import Stream
from starflow.runtime.bundle.graph_spec import GraphSpec
from starflow.runtime.plain.errors import BackendError

CHECKED_PASSES = 2


class CapturedContinuousRunner(ContinuousRunner):
    """A velocity graph on the device.

    Args:
        what: The graph, as messages call it.
        stream: The stream that `capture` captures in.

    Raises:
        BackendError: the GPU has too little memory, the graph does not run, or passes do not follow each other.
    """

    def __init__(self, graph: GraphSpec, what: str, stream: Stream, capture: Capture) -> None:
        super().__init__(graph)
        self._stream = stream
        with ExitStack() as resources:
            self._buffers = resources.enter_context(closing(GraphBuffers(stream, graph, 1, what)))
            addresses = self._buffers.addresses()
            self._pass = capture(1, [addresses], resources, self._feed_back, conditioned=False)
            self.load(np.zeros((CHECKED_PASSES, 4), np.float32))
            self.advance(CHECKED_PASSES)
            if (at := int(self.fetch("pass")[0])) != CHECKED_PASSES:
                raise BackendError(f"{what}: after {CHECKED_PASSES} passes, this engine is at pass {at}")
            self._resources = resources.pop_all()

    def close(self) -> None:
        self._resources.close()

    def store(self, name: str, value: NDArray) -> None:
        self._buffers[name].store(value, 1)

    def fetch(self, name: str) -> NDArray:
        return self._buffers[name].fetch(1)

    def advance(self, passes: int) -> None:
        self._stream.gpu.select()
        self._pass.launch(passes)

    @property
    def kernels_per_pass(self) -> int | None:
        """Number of kernels in one pass; None if it could not be captured."""
        return self._pass.kernels

    def _feed_back(self) -> None:
        for name in STATE:
            into, out_of = self._buffers[name], self._buffers[f"{name}_next"]
            self._stream.copy(into.memory, out_of.memory, into.size(1))
