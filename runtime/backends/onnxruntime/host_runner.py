"""ONNX Runtime on the CPU: buffers are NumPy arrays, caches are updated in place, and a step is one call."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from starflow.runtime.backends.block_runner import assert_steps
from starflow.runtime.backends.onnxruntime.session import numpy_dtype, open_session
from starflow.runtime.backends.onnxruntime.session_block_runner import SessionBlockRunner
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec, TensorSpec, fixed_shape


class HostBlockRunner(SessionBlockRunner):
    """One flow block in one session, its buffers NumPy arrays.

    Attributes:
        threads: Number of threads within an operator.
    """

    def __init__(
        self, bundle: Bundle, graph: GraphSpec, block: Block, max_chunk: int, threads: int, profile: Path | None = None
    ) -> None:
        super().__init__(open_session(bundle, graph, "cpu", threads, profile), block, graph, max_chunk)
        self.threads = threads
        self._arrays: dict[tuple[str, int], NDArray] = {}  # the memory of the OrtValues of the same key
        self._step = self.binding(1)
        self._position = self._arrays["position", 1]
        assert_steps(self)

    def allocate(self, spec: TensorSpec, count: int) -> onnxruntime.OrtValue:
        array = self._arrays[self.key(spec.name, count)] = np.zeros(fixed_shape(spec, count), numpy_dtype(spec))
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    def store(self, name: str, value: ArrayLike, count: int = 1) -> None:
        self.fetch(name, count)[...] = value

    def fetch(self, name: str, count: int = 1) -> NDArray:
        self.value(name, count)
        return self._arrays[self.key(name, count)]

    def run(self, count: int) -> None:
        self._session.run_with_iobinding(self.binding(count))

    def seek(self, position: int) -> None:
        self._position[0] = position

    def tell(self) -> int:
        return int(self._position[0])

    def advance(self, steps: int) -> None:
        run, step, position = self._session.run_with_iobinding, self._step, self._position
        for _ in range(steps):
            run(step)
            position += 1
