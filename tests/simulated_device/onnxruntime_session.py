"""ONNX Runtime's CUDA provider over a simulated device: the graph runs on the CPU, when the stream's turn has come.

A session holds what makes its runs capturable: a run is one operation in the caller's stream, the first run of a session
allocates, which a capture must not, and everything that is bound lies at an address of the device.
"""

import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import DTypeLike

from starflow.runtime.backends.onnxruntime.session import OnDevice, open_session
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec
from tests.simulated_device.device import Operation, SimulatedDevice
from tests.simulated_device.memory import ContractViolation, Region, byte_count

ARENA_BYTES = 4096  # what the first run of a session allocates, until the session is freed


class SimulatedBinding:
    """Inputs and outputs at addresses of the device."""

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        self.inputs: dict[str, tuple[Region | None, tuple[int, ...], np.dtype]] = {}
        self.outputs: dict[str, tuple[Region | None, tuple[int, ...], np.dtype]] = {}

    def bind_input(self, name: str, kind: str, gpu: int, dtype: DTypeLike, shape: tuple[int, ...], at: int) -> None:
        self.inputs[name] = self._bound(name, kind, dtype, shape, at)

    def bind_output(self, name: str, kind: str, gpu: int, dtype: DTypeLike, shape: tuple[int, ...], at: int) -> None:
        self.outputs[name] = self._bound(name, kind, dtype, shape, at)

    def _bound(
        self, name: str, kind: str, dtype: DTypeLike, shape: tuple[int, ...], at: int
    ) -> tuple[Region | None, tuple[int, ...], np.dtype]:
        if kind != "cuda":
            raise ContractViolation(f"{name} is bound to {kind}, where a captured run cannot read it")
        size = byte_count(shape, np.dtype(dtype))
        return (self._device.memory.region(at, size, name) if size else None), shape, np.dtype(dtype)


class SimulatedSession:
    """What `CudaEngine` uses of a session."""

    def __init__(self, device: SimulatedDevice, real: onnxruntime.InferenceSession, stream: int) -> None:
        self._device, self._real, self._stream = device, real, stream
        self._runs = 0
        self.get_inputs = real.get_inputs
        device.reserve(self, 0)

    def get_input_memory_infos(self) -> list[Any]:
        return [SimpleNamespace(name="Cuda") for _ in self._real.get_inputs()]

    def io_binding(self) -> SimulatedBinding:
        return SimulatedBinding(self._device)

    def run_with_iobinding(self, io: SimulatedBinding, options: onnxruntime.RunOptions) -> None:
        with self._device.lock:
            if options.get_run_config_entry("disable_synchronize_execution_providers") != "1":
                raise ContractViolation("a run that waits for the device cannot be captured")
            self._device.counts["run_with_iobinding"] += 1
            if self._device.broken:
                raise RuntimeError(f"CUDA failure 719: {self._device.broken}\nin another line")
            stream = self._device.stream(self._stream, "run_with_iobinding")
            if stream.capture and not (self._device.capturable and self._runs):
                stream.capture.invalid = True
                raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
            if not self._runs:
                self._allocate()
            self._runs += 1
            self._device.enqueue(self._stream, self._operation(io))

    def _allocate(self) -> None:
        if self._device.memory.free_bytes(self._device.current_gpu) < ARENA_BYTES:
            raise RuntimeError(f"Failed to allocate memory for requested buffer of size {ARENA_BYTES}\nin another line")
        self._device.reserve(self, ARENA_BYTES)

    def _operation(self, io: SimulatedBinding) -> Operation:
        real = self._real

        def run() -> None:
            feeds = {}
            for name, (region, shape, dtype) in io.inputs.items():
                if region:
                    region.check_written(f"input {name}")
                feeds[name] = region.array(shape, dtype).copy() if region else np.zeros(shape, dtype)
            names = list(io.outputs)
            for name, value in zip(names, real.run(names, feeds), strict=True):
                region, shape, dtype = io.outputs[name]
                if region:
                    region.array(shape, dtype)[...] = value
                    region.mark_written()

        reads = tuple(region for region, _, _ in io.inputs.values() if region)
        writes = tuple(region for region, _, _ in io.outputs.values() if region)
        return Operation("a run of a session", run, reads, writes, (weakref.ref(self),))


def open_simulated(device: SimulatedDevice, bundle: Bundle, graph: GraphSpec, on_device: OnDevice) -> SimulatedSession:
    """A session as `open_session` opens it on CUDA, with the same fixed sizes."""
    fixed = OnDevice(on_device.stream, on_device.sizes, {})
    return SimulatedSession(device, open_session(bundle, graph, "cpu", 1, on_device=fixed), on_device.stream)
