"""TensorRT on a GPU: a velocity graph as one CUDA graph, replayed pass by pass.

State and table of passes lie on the device, and the captured work ends with the copies that make the next launch the next pass:
no copy from the host and no waiting until the state is read.
"""

from contextlib import ExitStack, closing

from numpy.typing import NDArray

from starflow.runtime.backends.continuous_runner import STATE, ContinuousRunner
from starflow.runtime.backends.cuda.buffers import StepBuffers
from starflow.runtime.backends.cuda.device import DeviceMemory, Graph, Stream
from starflow.runtime.backends.tensorrt.engine import BlockEngine


class TensorrtContinuousRunner(ContinuousRunner):
    """A velocity graph on the device.

    Args:
        engine: Its engine.
        scratch: Memory for what lies between a run's inputs and outputs.
        stream: Where everything runs.
    """

    def __init__(self, engine: BlockEngine, scratch: DeviceMemory, stream: Stream) -> None:
        super().__init__(engine.graph)
        self._stream = stream
        with ExitStack() as resources:
            self._buffers = resources.enter_context(closing(StepBuffers(stream, engine.graph, 1)))
            execution = engine.execution(1, self._buffers.addresses(), scratch, stream)
            resources.callback(execution.close)
            execution.enqueue()  # the first run compiles and allocates, which a capture must not
            stream.synchronize()
            execution.assert_capturable()

            def work() -> None:
                execution.enqueue()
                for name in STATE:
                    into, out_of = self._buffers[name], self._buffers[f"{name}_next"]
                    stream.copy(into.memory, out_of.memory, into.size(1))

            self._pass: Graph = resources.enter_context(closing(stream.capture(work)))
            self._resources = resources.pop_all()

    def close(self) -> None:
        self._resources.close()

    def store(self, name: str, value: NDArray) -> None:
        self._stream.gpu.select()
        self._buffers[name].store(value, 1)

    def fetch(self, name: str) -> NDArray:
        self._stream.gpu.select()
        return self._buffers[name].fetch(1)

    def advance(self, passes: int) -> None:
        self._stream.gpu.select()
        self._pass.launch(passes)

    @property
    def kernels_per_pass(self) -> int:
        """How many kernels a pass is."""
        return self._pass.kernels
