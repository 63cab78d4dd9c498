"""ONNX Runtime on the CPU: every buffer allocated once, caches updated in place, one run call per step."""

from collections.abc import Sequence
from itertools import zip_longest
from types import TracebackType
from typing import Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from starflow.runtime.backends.sequence_runner import SequenceRunner
from starflow.runtime.bundle import Bundle
from starflow.runtime.errors import BackendError, BundleError
from starflow.runtime.manifest import Block, GraphSpec, TensorSpec, Variant, fixed_shape

PROVIDER = "CPUExecutionProvider"


def numpy_dtype(spec: TensorSpec) -> np.dtype:
    """NumPy's type of a tensor of the manifest."""
    if spec.dtype == "bfloat16":
        raise BackendError(
            f"{spec.name} is bfloat16, which ONNX Runtime's CPU provider cannot compute; use another variant"
        )
    return np.dtype(spec.dtype)


class OnnxBlockRunner(SequenceRunner):
    """One flow block in one session.

    Buffers whose shape does not depend on the number of tokens S exist once; those that do, once per S that occurs. For
    single steps the token output is bound to the memory of the `previous` input, so a step feeds the next one.
    """

    def __init__(self, bundle: Bundle, graph: GraphSpec, block: Block, max_chunk: int, threads: int) -> None:
        super().__init__(block, graph, max_chunk)
        self._specs = {spec.name: spec for spec in graph.inputs}
        self._session = _session(bundle, graph, threads)
        self._fixed: dict[str, NDArray] = {}
        self._values: dict[str, onnxruntime.OrtValue] = {}
        for spec in graph.inputs:
            if "S" not in spec.shape:
                self._fixed[spec.name] = np.zeros(fixed_shape(spec), numpy_dtype(spec))
                self._values[spec.name] = onnxruntime.OrtValue.ortvalue_from_numpy(self._fixed[spec.name])
        self._position = self._fixed["position"]
        self._bindings: dict[int, _Binding] = {}
        self._step = self._binding(1)
        self._assert_in_place()

    def store(self, name: str, value: NDArray, count: int = 1) -> None:
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

    def _assert_in_place(self) -> None:
        """Run one step on marked caches: exactly the written position may change, in the very memory we bound."""
        mark = 7.0
        position = self.block.capacity - 1
        caches = {name: self._fixed[name] for name, spec in self._specs.items() if spec.role in ("cache", "samples")}
        for cache in caches.values():
            cache[...] = mark
        self.seek(position)
        self.run(1)
        for name, cache in caches.items():
            untouched = bool((cache[..., :position, :] == mark).all())
            written = bool((cache[..., position, :] != mark).any())
            if not (untouched and written):
                raise BackendError(
                    f"{name} of flow block {self.block.index} is not updated in place by this ONNX Runtime"
                )
        for buffer in (*self._step.sized.values(), *caches.values()):
            buffer[...] = 0
        self.seek(0)


class _Binding:
    """An IOBinding for one number of tokens, with the arrays of that size it points into."""

    def __init__(self, io: onnxruntime.IOBinding, sized: dict[str, NDArray], owned: tuple[object, ...]) -> None:
        self.io, self.sized = io, sized
        self._owned = owned  # OrtValues the binding refers to


class OnnxRuntimeBackend:
    """Sessions of one variant's flow blocks on the CPU.

    Args:
        bundle: An open bundle.
        variant: The variant to run.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime (one per physical core).
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, variant: Variant, threads: int = 0) -> None:
        self._bundle, self._variant, self._threads = bundle, variant, threads
        self._runners: dict[int, OnnxBlockRunner] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runners.clear()

    def runner(self, block: int) -> OnnxBlockRunner:
        if block not in self._runners:
            manifest = self._bundle.manifest
            graph = self._bundle.graph(self._variant, block)
            self._runners[block] = OnnxBlockRunner(
                self._bundle, graph, manifest.blocks[block], manifest.max_chunk, self._threads
            )
        return self._runners[block]


def _session(bundle: Bundle, graph: GraphSpec, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    path = bundle.root / graph.file.path
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[PROVIDER])
    except Exception as error:  # ONNX Runtime raises a dozen types for one thing: it cannot load this graph
        raise BundleError(
            f"{path}: ONNX Runtime cannot load it ({_first_line(error)}); export the bundle again"
        ) from None
    if session.get_providers() != [PROVIDER]:
        raise BackendError(f"asked ONNX Runtime for {PROVIDER}, got {session.get_providers()}")
    _compare(path.name, "inputs", graph.inputs, session.get_inputs())
    _compare(path.name, "outputs", graph.outputs, session.get_outputs())
    return session


def _compare(name: str, what: str, specs: Sequence[TensorSpec], found: Sequence[onnxruntime.NodeArg]) -> None:
    """The graph on disk must be the one the manifest describes."""
    expected = [f"{spec.name}{list(spec.shape)}" for spec in specs]
    actual = [f"{value.name}{value.shape}" for value in found]
    for one, other in zip_longest(expected, actual, fillvalue="nothing"):
        if one != other:
            raise BundleError(f"{name}: among its {what} is {other}, the manifest says {one}; export the bundle again")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
