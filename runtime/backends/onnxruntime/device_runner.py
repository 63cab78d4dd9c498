"""ONNX Runtime on a device with memory of its own: nothing crosses to the host between two tokens.

This runs portable graphs. Buffers are OrtValues in the memory where the session reads them, which is the device's. ONNX Runtime
reads the position on the host, since shapes depend on it: the runner counts it and binds it anew for every run.
"""

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from starflow.runtime.backends.base import Provider
from starflow.runtime.backends.block_runner import assert_steps
from starflow.runtime.backends.onnxruntime.session import fill, input_memory, open_session, zeros
from starflow.runtime.backends.onnxruntime.session_block_runner import SessionBlockRunner
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec, TensorSpec


class DeviceBlockRunner(SessionBlockRunner):
    """One flow block in one session, its buffers on a device.

    Args:
        device: The device of the provider, as OrtValue names it.
    """

    def __init__(
        self, bundle: Bundle, graph: GraphSpec, block: Block, max_chunk: int, provider: Provider, device: str = "cuda"
    ) -> None:
        super().__init__(open_session(bundle, graph, provider, threads=0), block, graph, max_chunk)
        self._device, self._memory = device, input_memory(self._session, device)
        self._here = 0
        assert_steps(self)

    def allocate(self, spec: TensorSpec, count: int) -> onnxruntime.OrtValue:
        return zeros(spec, self._memory.get(spec.name, self._device), count)

    def store(self, name: str, value: ArrayLike, count: int = 1) -> None:
        fill(self.value(name, count), self._specs[name], value)

    def fetch(self, name: str, count: int = 1) -> NDArray:
        array: NDArray = self.value(name, count).numpy()
        return array

    def run(self, count: int) -> None:
        io = self.binding(count)
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
