"""ONNX Runtime on an NVIDIA GPU, a graph: sessions of fixed shapes, whose runs are captured into CUDA graphs of our own.

With the number of tokens fixed, a session computes nothing on the host and copies nothing. ONNX Runtime's own CUDA graphs wait for
the device after every launch; captured from outside, a step costs the host one launch and nobody waits.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import onnxruntime

from starflow.runtime.backends.cuda.capture import graph_or_repeated
from starflow.runtime.backends.cuda.device import LOADING, CaptureRefusedError, Graph, Repeated, Stream
from starflow.runtime.backends.onnxruntime.session import input_memory, numpy_dtype, runs
from starflow.runtime.bundle.graph_spec import GraphSpec, fixed_shape
from starflow.runtime.plain.errors import BackendError, first_line

logger = logging.getLogger(__name__)

# Opens a session of a graph with these sizes, whose runs go into the stream.
OpenSession = Callable[[dict[str, int]], onnxruntime.InferenceSession]

WARM_UP = 2  # runs: the first chooses kernels and allocates, the second shows that no more is allocated


class CudaEngine:
    """The sessions of one graph on a GPU: one for each number of tokens, and one for steps behind the condition.

    Args:
        graph: The graph, portable or of the cuda lowering.
        open_session: Called once for each number of tokens.
        stream: Where runs go; whoever launches a captured graph uses the same, since runs share memory.
    """

    def __init__(self, graph: GraphSpec, open_session: OpenSession, stream: Stream) -> None:
        self.graph, self.checked = graph, False
        self.what = f"flow block {graph.block}"
        self._open, self._stream = open_session, stream
        self._sessions: dict[tuple[int, int], onnxruntime.InferenceSession] = {}
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        # Graphs of the first releases read a condition in every step.
        self.steps_lack_condition = 0 in self._condition_shape(self._session(1, conditioned=False))

    @property
    def max_tokens(self) -> int:
        """Most tokens of one run; the graph has no limit of its own."""
        return next(int(spec.shape[1]) for spec in self.graph.inputs if spec.role == "noise")

    def close(self) -> None:
        """Free the sessions."""
        self._sessions.clear()

    def capture(
        self,
        count: int,
        runs_at: Sequence[dict[str, int]],
        resources: ExitStack,
        feed_back: Callable[[], None],
        *,
        conditioned: bool,
    ) -> Graph | Repeated:
        """Capture runs of S = `count` tokens, one after the other, as one CUDA graph; see `Capture`.

        Raises:
            BackendError: ONNX Runtime cannot run them.
        """
        with LOADING:
            session = self._session(count, conditioned=conditioned)
            bound = [self._bound(session, addresses, count) for addresses in runs_at]
            resources.callback(lambda *_: self._stream.drain(), session, *bound)

            def work() -> None:
                with runs(self.graph):
                    for io in bound:
                        session.run_with_iobinding(io, self._options)
                feed_back()

            def captured_work() -> None:
                try:
                    for io in bound:
                        session.run_with_iobinding(io, self._options)
                except Exception as error:  # a dozen types
                    raise CaptureRefusedError(first_line(error)) from error
                feed_back()

            for _ in range(WARM_UP):
                work()
            self._stream.synchronize()
            runs_of = f"{self.what}: runs of {count} tokens"
            return graph_or_repeated(lambda: self._stream.capture(captured_work), work, runs_of, resources, logger)

    def _session(self, count: int, *, conditioned: bool) -> onnxruntime.InferenceSession:
        """The session of runs of `count` tokens."""
        sizes = (count, count if conditioned else 0)
        if sizes not in self._sessions:
            session = self._open({"S": sizes[0], "M": sizes[1]})
            on_host = [name for name, place in input_memory(session, "cuda").items() if place != "cuda"]
            if on_host:
                raise BackendError(f"{self.what}: ONNX Runtime reads {', '.join(on_host)} on the host")
            self._sessions[sizes] = session
        return self._sessions[sizes]

    def _bound(
        self, session: onnxruntime.InferenceSession, addresses: dict[str, int], count: int
    ) -> onnxruntime.IOBinding:
        """The session's inputs and outputs at fixed addresses."""
        io, device = session.io_binding(), self._stream.gpu.index
        taken = self._condition_shape(session)
        for spec in self.graph.inputs:
            shape = taken if spec.role == "condition" and taken else fixed_shape(spec, count)
            io.bind_input(spec.name, "cuda", device, numpy_dtype(spec), shape, addresses[spec.name])
        for spec in self.graph.outputs:
            io.bind_output(spec.name, "cuda", device, numpy_dtype(spec), fixed_shape(spec, count), addresses[spec.name])
        return io

    def _condition_shape(self, session: onnxruntime.InferenceSession) -> tuple[int, ...]:
        """The shape of the condition that runs of a session take; () if the block takes none."""
        name = next((spec.name for spec in self.graph.inputs if spec.role == "condition"), None)
        return next((tuple(value.shape) for value in session.get_inputs() if value.name == name), ())
