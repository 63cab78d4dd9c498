"""The tensors of a graph in GPU memory, each allocated once."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starflow.runtime.backends.cuda.device import DeviceMemory, PinnedMemory, Stream
from starflow.runtime.bundle.graph_spec import GraphSpec, TensorSpec, fixed_shape, tensor_bytes
from starflow.runtime.bundle.network_spec import NetworkSpec


class TensorBuffer:
    """One tensor on the device, with pinned host memory for copies.

    It has room for `count` tokens. Caches never leave the device and have no host memory, so their type need not exist in NumPy.
    """

    def __init__(self, stream: Stream, spec: TensorSpec, count: int, what: str) -> None:
        self._stream, self._spec, self._what = stream, spec, what
        size = self.size(count)
        with ExitStack() as stack:
            self.memory = stack.enter_context(closing(DeviceMemory(stream, size, what)))
            self._host: PinnedMemory | None = None
            if spec.role != "cache":
                self._host = stack.enter_context(closing(PinnedMemory(stream, size, what)))
            stream.zero(self.memory)
            self._resources = stack.pop_all()

    def close(self) -> None:
        self._resources.close()

    def size(self, count: int) -> int:
        """Size in bytes for `count` tokens."""
        return tensor_bytes(self._spec, count)

    def store(self, value: ArrayLike, count: int) -> None:
        """Fill the tensor for `count` tokens, broadcasting, and wait until it is filled."""
        assert self._host is not None
        self._stream.gpu.select()
        host = self._host.array(fixed_shape(self._spec, count), self._spec.dtype)
        host[...] = value
        self._stream.upload(self.memory, self._host, host.nbytes)
        self._stream.synchronize()

    def fetch(self, count: int) -> NDArray:
        """The content for `count` tokens, in host memory that the next `store` or `fetch` overwrites."""
        assert self._host is not None
        self._stream.gpu.select()
        host = self._host.array(fixed_shape(self._spec, count), self._spec.dtype)
        self._stream.download(self._host, self.memory, host.nbytes)
        self._stream.synchronize()
        return host

    def raw(self) -> NDArray:
        """A copy of the bytes of the whole tensor, which must not depend on the number of tokens: [..., bytes of the last axis]."""
        self._stream.gpu.select()
        *axes, _ = fixed_shape(self._spec)
        size = self.size(1)
        with closing(PinnedMemory(self._stream, size, self._what)) as host:
            self._stream.download(host, self.memory, size)
            self._stream.synchronize()
            return host.array((*axes, size // prod(axes)), np.uint8).copy()


class GraphBuffers:
    """Every input and output of one graph.

    A tensor whose shape depends on the number of tokens S has room for S = `max_chunk`; smaller runs use its beginning. An output
    that updates an input shares its buffer. `what` names the graph in messages.

    Raises:
        BackendError: the GPU has too little memory.
    """

    def __init__(self, stream: Stream, graph: GraphSpec | NetworkSpec, max_chunk: int, what: str) -> None:
        self._graph = graph
        self._updated = {spec.updated_by: spec.name for spec in graph.inputs if spec.updated_by}
        self._tensors: dict[str, TensorBuffer] = {}
        with ExitStack() as stack:
            for spec in (*graph.inputs, *graph.outputs):
                if spec.name not in self._updated:
                    tensor = TensorBuffer(stream, spec, max_chunk, f"{spec.name} of {what}")
                    self._tensors[spec.name] = stack.enter_context(closing(tensor))
            self._resources = stack.pop_all()

    def close(self) -> None:
        self._resources.close()

    def __getitem__(self, name: str) -> TensorBuffer:
        """The buffer of an input or output."""
        return self._tensors[self._updated.get(name, name)]

    def addresses(self) -> dict[str, int]:
        """Address of every input and output."""
        return {spec.name: self[spec.name].memory.address for spec in (*self._graph.inputs, *self._graph.outputs)}

    def caches(self) -> Iterator[DeviceMemory]:
        """The memory of all caches."""
        return (self[spec.name].memory for spec in self._graph.inputs if spec.role == "cache")
