"""ONNX Runtime on a device with memory of its own: nothing crosses to the host between two tokens.

For portable graphs. Buffers are OrtValues where the session reads them, which is device memory. A single step feeds the next
one: its token goes where `previous` is read from. The position is what ONNX Runtime reads on the host, since shapes depend
on it: it is counted here and bound anew for every run.
"""

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from starflow.runtime.backends.base import Provider
from starflow.runtime.backends.block_runner import BlockRunner, assert_in_place, assert_steps
from starflow.runtime.backends.onnxruntime.session import input_memory, numpy_dtype, open_session
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec, TensorSpec, fixed_shape


class DeviceBlockRunner(BlockRunner):
    """One flow block in one session, its buffers on a device.

    Args:
        bundle: The bundle.
        graph: A portable step graph.
        block: Its flow block.
        max_chunk: Most tokens of one run.
        provider: The execution provider.
        device: Where its memory is, as OrtValue names it.
    """

    def __init__(
        self, bundle: Bundle, graph: GraphSpec, block: Block, max_chunk: int, provider: Provider, device: str = "cuda"
    ) -> None:
        super().__init__(block, graph, max_chunk)
        self._session = open_session(bundle, graph, provider, threads=0)
        self._device, self._memory = device, input_memory(self._session, device)
        fixed = (spec for spec in graph.inputs if "S" not in spec.shape and spec.role != "position")
        self._fixed = {spec.name: self._new(spec) for spec in fixed}
        self._sized: dict[tuple[str, int], onnxruntime.OrtValue] = {}
        self._here = 0
        self._bindings: dict[int, onnxruntime.IOBinding] = {}
        assert_in_place(self)
        assert_steps(self)

    def store(self, name: str, value: NDArray | np.float32, count: int = 1) -> None:
        target = self._value(name, count)
        dtype = np.float32 if name not in self._fixed else _dtype(target)
        target.update_inplace(np.ascontiguousarray(np.broadcast_to(value, target.shape()), dtype))

    def fetch(self, name: str, count: int = 1) -> NDArray:
        array: NDArray = self._value(name, count).numpy()
        return array

    def run(self, count: int) -> None:
        io = self._binding(count)
        io.bind_cpu_input("position", np.array([self._here], np.int64))
        self._session.run_with_iobinding(io)

    def seek(self, position: int) -> None:
        self._here = position

    def tell(self) -> int:
        return self._here

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.run(1)
            self._here += 1

    def clear(self) -> None:
        for spec in self.graph.inputs:
            if spec.role == "cache":
                self.store(spec.name, np.float32(0))

    # Buffers

    def _new(self, spec: TensorSpec, count: int = 1) -> onnxruntime.OrtValue:
        array = np.zeros(fixed_shape(spec, count), numpy_dtype(spec))
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self._memory.get(spec.name, self._device), 0)

    def _value(self, name: str, count: int) -> onnxruntime.OrtValue:
        """The buffer of an input, or of the token output `x`: for S = 1 that of `previous`, which nothing reads after it."""
        if name in self._fixed:
            return self._fixed[name]
        name = "previous" if name == "x" and count == 1 else name
        if (name, count) not in self._sized:
            spec = next(spec for spec in (*self.graph.inputs, *self.graph.outputs) if spec.name == name)
            self._sized[name, count] = self._new(spec, count)
        return self._sized[name, count]

    def _binding(self, count: int) -> onnxruntime.IOBinding:
        if count not in self._bindings:
            io = self._session.io_binding()
            for spec in self.graph.inputs:
                if spec.role != "position":
                    io.bind_ortvalue_input(spec.name, self._value(spec.name, count))
            updates = {spec.updated_by: spec.name for spec in self.graph.inputs if spec.updated_by}
            for spec in self.graph.outputs:
                if spec.role != "position":  # a caller that counts need not bind it
                    io.bind_ortvalue_output(spec.name, self._value(updates.get(spec.name, spec.name), count))
            self._bindings[count] = io
        return self._bindings[count]


def _dtype(value: onnxruntime.OrtValue) -> np.dtype:
    return np.dtype(
        {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}[value.data_type()]
    )
