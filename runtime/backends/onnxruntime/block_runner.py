"""ONNX Runtime, a flow block: buffers that are bound once for each number of tokens, and a step that is one call."""

from collections.abc import Callable

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from starflow.runtime.backends.array_block_runner import ArrayBlockRunner
from starflow.runtime.backends.block_runner import BlockRunner, assert_steps
from starflow.runtime.backends.onnxruntime.session import fill, input_memory, numpy_dtype, runs, zeros
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.graph_spec import GraphSpec, TensorSpec

# The buffer of an input, or of the token output `x`, for a number of tokens.
Buffer = Callable[[str, int], onnxruntime.OrtValue]


class Bindings:
    """The inputs and outputs of a session, bound once for each number of tokens."""

    def __init__(self, session: onnxruntime.InferenceSession, graph: GraphSpec) -> None:
        self._session, self._graph = session, graph
        self._bound: dict[int, onnxruntime.IOBinding] = {}

    def of(self, count: int, value: Buffer) -> onnxruntime.IOBinding:
        """Those of runs of `count` tokens. `value` is not kept: a runner that its bindings refer to is not freed in time."""
        if count not in self._bound:
            io = self._session.io_binding()
            for spec in self._graph.inputs:
                io.bind_ortvalue_input(spec.name, value(spec.name, count))
            updates = {spec.updated_by: spec.name for spec in self._graph.inputs if spec.updated_by}
            for spec in self._graph.outputs:
                if spec.role != "position":  # the runner counts
                    io.bind_ortvalue_output(spec.name, value(updates.get(spec.name, spec.name), count))
            self._bound[count] = io
        return self._bound[count]


class HostBlockRunner(ArrayBlockRunner):
    """One flow block on the CPU: caches are updated in place. Runners may share a session, and run at the same time."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        graph: GraphSpec,
        block: Block,
        max_chunk: int,
        max_prefill: int | None = None,
    ) -> None:
        self.session = session
        super().__init__(block, graph, max_chunk, max_prefill)
        self._bindings = Bindings(session, graph)
        assert_steps(self)

    def dtype(self, spec: TensorSpec) -> np.dtype:
        return numpy_dtype(spec)

    def run(self, count: int) -> None:
        with runs(self.graph):
            self.session.run_with_iobinding(self._bindings.of(count, self._value))

    def advance(self, steps: int) -> None:
        run, step, position = self.session.run_with_iobinding, self._bindings.of(1, self._value), self._position
        with runs(self.graph):
            for _ in range(steps):
                run(step)
                position += 1

    def _value(self, name: str, count: int) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(self.fetch(name, count))  # in the memory of the array


class DeviceBlockRunner(BlockRunner):
    """One flow block on a device with memory of its own: nothing crosses to the host between two tokens.

    This runs portable graphs. Buffers are OrtValues in the memory where the session reads them, which is the device's. ONNX
    Runtime reads the position on the host, since shapes depend on it: the runner counts it and binds it anew for every run.

    Args:
        device: The device of the provider, as OrtValue names it.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        graph: GraphSpec,
        block: Block,
        max_chunk: int,
        device: str = "cuda",
    ) -> None:
        super().__init__(block, graph, max_chunk)
        self.session, self._device, self._memory = session, device, input_memory(session, device)
        self._values: dict[tuple[str, int], onnxruntime.OrtValue] = {}
        self._bindings = Bindings(session, graph)
        self._here = 0
        assert_steps(self)

    def store(self, name: str, value: ArrayLike, count: int = 1) -> None:
        fill(self._value(name, count), self.specs[name], value)

    def fetch(self, name: str, count: int = 1) -> NDArray:
        array: NDArray = self._value(name, count).numpy()
        return array

    def run(self, count: int) -> None:
        io = self._bindings.of(count, self._value)
        io.bind_cpu_input("position", np.array([self._here], np.int64))
        with runs(self.graph):
            self.session.run_with_iobinding(io)

    def seek(self, position: int) -> None:
        self._here = position

    def tell(self) -> int:
        return self._here

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.run(1)
            self._here += 1

    def _value(self, name: str, count: int) -> onnxruntime.OrtValue:
        key = self.buffer_key(name, count)
        if key not in self._values:
            spec = self.specs[key[0]]
            self._values[key] = zeros(spec, self._memory.get(spec.name, self._device), count)
        return self._values[key]
