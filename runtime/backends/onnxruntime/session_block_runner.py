"""A flow block in a session of ONNX Runtime: its buffers and bindings, wherever the buffers lie."""

from abc import abstractmethod

import onnxruntime

from starflow.runtime.backends.block_runner import BlockRunner
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.graph_spec import GraphSpec, TensorSpec


class SessionBlockRunner(BlockRunner):
    """One flow block in one session.

    Buffers whose shape does not depend on the number of tokens S exist once; the others exist once for each S that occurs.
    For S = 1 the token output shares the buffer of `previous`, which nothing reads after the token is computed: so a step
    feeds the next one.
    """

    def __init__(self, session: onnxruntime.InferenceSession, block: Block, graph: GraphSpec, max_chunk: int) -> None:
        super().__init__(block, graph, max_chunk)
        self._session = session
        self._specs = {spec.name: spec for spec in (*graph.inputs, *graph.outputs)}
        self._values: dict[tuple[str, int], onnxruntime.OrtValue] = {}
        self._bindings: dict[int, onnxruntime.IOBinding] = {}

    @abstractmethod
    def allocate(self, spec: TensorSpec, count: int) -> onnxruntime.OrtValue:
        """A buffer of zeros for runs of `count` tokens."""

    def key(self, name: str, count: int) -> tuple[str, int]:
        """The tensor and the S under which a buffer is kept."""
        if name == "x" and count == 1:
            return "previous", 1
        return name, count if "S" in self._specs[name].shape else 1

    def value(self, name: str, count: int) -> onnxruntime.OrtValue:
        """The buffer of an input, or of the token output `x`."""
        key = self.key(name, count)
        if key not in self._values:
            self._values[key] = self.allocate(self._specs[key[0]], count)
        return self._values[key]

    def binding(self, count: int) -> onnxruntime.IOBinding:
        """The inputs and outputs of a run over `count` tokens."""
        if count not in self._bindings:
            io = self._session.io_binding()
            for spec in self.graph.inputs:
                io.bind_ortvalue_input(spec.name, self.value(spec.name, count))
            updates = {spec.updated_by: spec.name for spec in self.graph.inputs if spec.updated_by}
            for spec in self.graph.outputs:
                if spec.role != "position":  # the runner counts
                    io.bind_ortvalue_output(spec.name, self.value(updates.get(spec.name, spec.name), count))
            self._bindings[count] = io
        return self._bindings[count]

    def clear(self) -> None:
        for spec in self.graph.inputs:
            if spec.role == "cache":
                self.store(spec.name, 0)
