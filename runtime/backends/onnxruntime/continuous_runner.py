"""ONNX Runtime: a velocity graph on the CPU or a device, run through two bindings in turn.

The state exists twice. One run reads the first copy and writes the second, and the next run does the reverse. So nothing is
copied, and no run reads memory that it writes.
"""

import onnxruntime
from numpy.typing import NDArray

from starflow.runtime.backends.continuous_runner import STATE, ContinuousRunner
from starflow.runtime.backends.onnxruntime.session import fill, input_memory, runs, zeros
from starflow.runtime.bundle.graph_spec import GraphSpec

Values = dict[str, onnxruntime.OrtValue]


class OnnxRuntimeContinuousRunner(ContinuousRunner):
    """One velocity graph on `cpu` or `cuda`. Runners may share a session, and run at the same time."""

    def __init__(self, session: onnxruntime.InferenceSession, graph: GraphSpec, device: str) -> None:
        super().__init__(graph)
        self._session = session
        memory = input_memory(self._session, device)
        self._specs = {spec.name: spec for spec in (*graph.inputs, *graph.outputs)}

        def allocate(names: tuple[str, ...]) -> Values:
            return {name: zeros(self._specs[name], memory.get(name, device)) for name in names}

        fixed = (name for name in self._specs if name not in STATE and not name.endswith("_next"))
        self._fixed, self._state = allocate(tuple(fixed)), [allocate(STATE), allocate(STATE)]
        self._bindings = [self._bind(*self._state), self._bind(*reversed(self._state))]
        self._turn = 0  # which state the next run reads

    def store(self, name: str, value: NDArray) -> None:
        fill(self._value(name), self._specs[name], value)

    def fetch(self, name: str) -> NDArray:
        array: NDArray = self._value(name).numpy()
        return array

    def advance(self, passes: int) -> None:
        run = self._session.run_with_iobinding
        with runs(self.graph):
            for _ in range(passes):
                run(self._bindings[self._turn])
                self._turn = 1 - self._turn

    def _value(self, name: str) -> onnxruntime.OrtValue:
        return self._state[self._turn][name] if name in STATE else self._fixed[name]

    def _bind(self, source: Values, target: Values) -> onnxruntime.IOBinding:
        io = self._session.io_binding()
        for spec in self.graph.inputs:
            io.bind_ortvalue_input(spec.name, (source if spec.name in STATE else self._fixed)[spec.name])
        for spec in self.graph.outputs:
            fed_back = spec.name.removesuffix("_next")
            io.bind_ortvalue_output(spec.name, target[fed_back] if fed_back in STATE else self._fixed[spec.name])
        return io
