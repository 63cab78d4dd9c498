"""A flow block whose buffers are NumPy arrays in host memory, the position included."""

from abc import abstractmethod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starflow.runtime.backends.block_runner import BlockRunner
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.graph_spec import GraphSpec, TensorSpec, fixed_shape


class ArrayBlockRunner(BlockRunner):
    """One flow block; each array is allocated when it is first needed."""

    def __init__(self, block: Block, graph: GraphSpec, max_chunk: int, max_prefill: int | None = None) -> None:
        super().__init__(block, graph, max_chunk, max_prefill)
        self._arrays: dict[tuple[str, int], NDArray] = {}
        self._position = self.fetch("position")

    @abstractmethod
    def dtype(self, spec: TensorSpec) -> np.dtype:
        """The NumPy type of a buffer."""

    def store(self, name: str, value: ArrayLike, count: int = 1) -> None:
        self.fetch(name, count)[...] = value

    def fetch(self, name: str, count: int = 1) -> NDArray:
        key = self.buffer_key(name, count)
        if key not in self._arrays:
            spec = self.specs[key[0]]
            self._arrays[key] = np.zeros(fixed_shape(spec, count), self.dtype(spec))
        return self._arrays[key]

    def seek(self, position: int) -> None:
        self._position[0] = position

    def tell(self) -> int:
        return int(self._position[0])
