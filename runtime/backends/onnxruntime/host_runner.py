"""ONNX Runtime on the CPU: buffers are NumPy arrays, caches are updated in place, a step is one run call."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from starflow.runtime.backends.block_runner import BlockRunner, assert_in_place
from starflow.runtime.backends.onnxruntime.session import numpy_dtype, open_session
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec, fixed_shape


class HostBlockRunner(BlockRunner):
    """One flow block in one session, its buffers NumPy arrays.

    Buffers whose shape does not depend on the number of tokens S exist once; those that do, once per S that occurs. For
    single steps the token output is bound to the memory of the `previous` input, so a step feeds the next one.

    Attributes:
        threads: Threads within an operator.
    """

    def __init__(
        self, bundle: Bundle, graph: GraphSpec, block: Block, max_chunk: int, threads: int, profile: Path | None = None
    ) -> None:
        super().__init__(block, graph, max_chunk)
        self.threads = threads
        self._specs = {spec.name: spec for spec in graph.inputs}
        self._session = open_session(bundle, graph, "cpu", threads, profile)
        self._fixed: dict[str, NDArray] = {}
        self._values: dict[str, onnxruntime.OrtValue] = {}
        for spec in graph.inputs:
            if "S" not in spec.shape:
                self._fixed[spec.name] = np.zeros(fixed_shape(spec), numpy_dtype(spec))
                self._values[spec.name] = onnxruntime.OrtValue.ortvalue_from_numpy(self._fixed[spec.name])
        self._position = self._fixed["position"]
        self._bindings: dict[int, _Binding] = {}
        self._step = self._binding(1)
        assert_in_place(self)

    def store(self, name: str, value: NDArray | np.float32, count: int = 1) -> None:
        self._buffer(name, count)[...] = value

    def fetch(self, name: str, count: int = 1) -> NDArray:
        return self._buffer(name, count)

    def run(self, count: int) -> None:
        self._session.run_with_iobinding(self._binding(count).io)

    def seek(self, position: int) -> None:
        self._position[0] = position

    def tell(self) -> int:
        return int(self._position[0])

    def advance(self, steps: int) -> None:
        run, binding, position = self._session.run_with_iobinding, self._step.io, self._position
        for _ in range(steps):
            run(binding)
            position += 1

    def clear(self) -> None:
        for name, spec in self._specs.items():
            if spec.role == "cache":
                self._fixed[name][...] = 0

    # Buffers

    def _buffer(self, name: str, count: int) -> NDArray:
        return self._fixed[name] if name in self._fixed else self._binding(count).sized[name]

    def _binding(self, count: int) -> "_Binding":
        if count not in self._bindings:
            self._bindings[count] = self._bind(count)
        return self._bindings[count]

    def _bind(self, count: int) -> "_Binding":
        io = self._session.io_binding()
        sized: dict[str, NDArray] = {}
        values = dict(self._values)
        for spec in self._specs.values():
            if "S" in spec.shape:
                sized[spec.name] = np.zeros(fixed_shape(spec, count), numpy_dtype(spec))
                values[spec.name] = onnxruntime.OrtValue.ortvalue_from_numpy(sized[spec.name])
        for name in self._specs:
            io.bind_ortvalue_input(name, values[name])
        updates = {spec.updated_by: name for name, spec in self._specs.items() if spec.updated_by}
        # The token output depends on `previous` and nothing reads `previous` after it, so they may share memory.
        token = sized["previous"] if count == 1 else np.zeros_like(sized["previous"])
        token_value = values["previous"] if count == 1 else onnxruntime.OrtValue.ortvalue_from_numpy(token)
        for spec in self.graph.outputs:
            if spec.role == "token":
                io.bind_ortvalue_output(spec.name, token_value)
            elif spec.name in updates:
                io.bind_ortvalue_output(spec.name, values[updates[spec.name]])
        return _Binding(io, sized | {"x": token}, (values, token_value))


class _Binding:
    """An IOBinding for one number of tokens, with the arrays of that size it points into."""

    def __init__(self, io: onnxruntime.IOBinding, sized: dict[str, NDArray], owned: tuple[object, ...]) -> None:
        self.io, self.sized = io, sized
        self._owned = owned  # OrtValues the binding refers to
