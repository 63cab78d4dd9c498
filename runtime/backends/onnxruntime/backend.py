"""ONNX Runtime: on the CPU, every buffer allocated once, caches updated in place, one run call per step."""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from starflow.runtime.backends.base import BandwidthProbe, Provider
from starflow.runtime.backends.block_runner import SequenceRunner, assert_in_place
from starflow.runtime.backends.memory_bandwidth import HostBandwidthProbe
from starflow.runtime.backends.onnxruntime.continuous_runner import OnnxRuntimeVelocityRunner
from starflow.runtime.backends.onnxruntime.device_runner import DeviceBlockRunner
from starflow.runtime.backends.onnxruntime.session import numpy_dtype, open_session
from starflow.runtime.backends.onnxruntime.thread_choice import fastest_runner, thread_counts
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec, fixed_shape
from starflow.runtime.bundle.manifest import Block, Variant


class HostBlockRunner(SequenceRunner):
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


class OnnxRuntimeBackend:
    """Sessions of one variant's flow blocks.

    Args:
        bundle: An open bundle.
        variant: The variant to run; one of the portable lowering for other providers than `cpu`.
        provider: What runs it. A session that fell back to another one is an error.
        threads: Threads within an operator on the CPU; 0 measures, for each block, whether one or all cores are faster.
        profiles: Folder for what ONNX Runtime's profiler writes on the CPU, `block<index>_*.json`, once this is closed.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        provider: Provider = "cpu",
        threads: int = 0,
        profiles: Path | None = None,
    ) -> None:
        self._bundle, self._variant, self._provider, self._threads = bundle, variant, provider, threads
        self._profiles = profiles
        self._runners: dict[int, SequenceRunner] = {}
        self._velocity: OnnxRuntimeVelocityRunner | None = None

    @property
    def name(self) -> str:
        return f"onnxruntime {self._provider}"

    def bandwidth_probe(self) -> BandwidthProbe:
        if self._provider == "cpu":
            return HostBandwidthProbe(self._threads)
        from starflow.runtime.backends.cuda.bandwidth import CudaBandwidthProbe
        from starflow.runtime.backends.cuda.device import Gpu

        return CudaBandwidthProbe(Gpu())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runners.clear()
        self._velocity = None

    def velocity_runner(self) -> OnnxRuntimeVelocityRunner:
        if self._velocity is None:
            graph = self._bundle.graph(self._variant, 0)
            self._velocity = OnnxRuntimeVelocityRunner(self._bundle, graph, self._provider, self._threads)
        return self._velocity

    def runner(self, block: int) -> SequenceRunner:
        if block not in self._runners:
            self._runners[block] = self._open(self._bundle.graph(self._variant, block))
        return self._runners[block]

    def _open(self, graph: GraphSpec) -> SequenceRunner:
        manifest = self._bundle.autoregressive
        block = manifest.blocks[graph.block]
        if self._provider == "cpu":
            profile = self._profiles / f"block{block.index}" if self._profiles else None

            def open_runner(threads: int) -> HostBlockRunner:
                return HostBlockRunner(self._bundle, graph, block, manifest.max_chunk, threads, profile)

            return fastest_runner(open_runner, thread_counts(self._threads, graph.weight_bytes))
        return DeviceBlockRunner(self._bundle, graph, block, manifest.max_chunk, self._provider)
