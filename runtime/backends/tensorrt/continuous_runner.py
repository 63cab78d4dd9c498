"""TensorRT on a GPU: a velocity graph as one CUDA graph, replayed for every pass.

State and table of passes lie on the device, and the captured work ends with the copies that make the next launch the next pass.
So nothing is copied from the host, and nobody waits until the state is read.
"""

from contextlib import ExitStack, closing

from numpy.typing import NDArray

from starflow.runtime.backends.continuous_runner import STATE, ContinuousRunner
from starflow.runtime.backends.cuda.buffers import GraphBuffers
from starflow.runtime.backends.cuda.device import DeviceMemory, Stream
from starflow.runtime.backends.tensorrt.engine import GraphEngine
from starflow.runtime.bundle.graph_spec import GraphSpec


class TensorrtContinuousRunner(ContinuousRunner):
    """A velocity graph on the device; see `GraphEngine.capture` for the arguments."""

    def __init__(self, engine: GraphEngine[GraphSpec], scratch: DeviceMemory, stream: Stream) -> None:
        super().__init__(engine.graph)
        self._stream = stream
        with ExitStack() as resources:
            self._buffers = resources.enter_context(closing(GraphBuffers(stream, engine.graph, 1, engine.what)))
            addresses = self._buffers.addresses()
            self._pass = engine.capture(scratch, stream, 1, [addresses], resources, self._feed_back)
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
