"""ONNX Runtime: a velocity graph on the CPU or a device, two bindings taking turns.

The state exists twice. A run reads one of the two and writes the other, the next run the other way round, so nothing is copied
and no run reads memory that it writes.
"""

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from starflow.runtime.backends.base import Provider
from starflow.runtime.backends.continuous_runner import STATE, ContinuousRunner
from starflow.runtime.backends.onnxruntime.session import input_memory, numpy_dtype, open_session
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec, TensorSpec, fixed_shape


class OnnxRuntimeContinuousRunner(ContinuousRunner):
    """One velocity graph in one session.

    Args:
        bundle: The bundle.
        graph: Its velocity graph; a portable one for other providers than `cpu`.
        provider: What runs it.
        threads: Threads within an operator on the CPU; 0 leaves the choice to ONNX Runtime.
    """

    def __init__(self, bundle: Bundle, graph: GraphSpec, provider: Provider, threads: int) -> None:
        super().__init__(graph)
        self._session = open_session(bundle, graph, provider, threads)
        self._device = "cpu" if provider == "cpu" else "cuda"
        self._memory = input_memory(self._session, self._device)
        self._specs = {spec.name: spec for spec in (*graph.inputs, *graph.outputs)}
        self._fixed = {
            name: self._new(spec)
            for name, spec in self._specs.items()
            if name not in STATE and not name.endswith("_next")
        }
        self._state = [{name: self._new(self._specs[name]) for name in STATE} for _ in range(2)]
        self._bindings = [self._bind(*self._state), self._bind(*reversed(self._state))]
        self._turn = 0  # which state the next run reads

    def store(self, name: str, value: NDArray) -> None:
        spec = self._specs[name]
        self._value(name).update_inplace(
            np.ascontiguousarray(np.broadcast_to(value, fixed_shape(spec)), numpy_dtype(spec))
        )

    def fetch(self, name: str) -> NDArray:
        array: NDArray = self._value(name).numpy()
        return array

    def advance(self, passes: int) -> None:
        run = self._session.run_with_iobinding
        for _ in range(passes):
            run(self._bindings[self._turn])
            self._turn = 1 - self._turn

    def _new(self, spec: TensorSpec) -> onnxruntime.OrtValue:
        zeros = np.zeros(fixed_shape(spec), numpy_dtype(spec))
        return onnxruntime.OrtValue.ortvalue_from_numpy(zeros, self._memory.get(spec.name, self._device), 0)

    def _value(self, name: str) -> onnxruntime.OrtValue:
        return self._state[self._turn][name] if name in STATE else self._fixed[name]

    def _bind(
        self, source: dict[str, onnxruntime.OrtValue], target: dict[str, onnxruntime.OrtValue]
    ) -> onnxruntime.IOBinding:
        io = self._session.io_binding()
        for spec in self.graph.inputs:
            io.bind_ortvalue_input(spec.name, (source if spec.name in STATE else self._fixed)[spec.name])
        for spec in self.graph.outputs:
            fed_back = spec.name.removesuffix("_next")
            io.bind_ortvalue_output(spec.name, target[fed_back] if fed_back in STATE else self._fixed[spec.name])
        return io
