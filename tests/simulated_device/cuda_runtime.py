"""A `cuda.bindings.runtime` over a simulated device: the functions the backend calls, with the real module's types."""

# ruff: noqa: N802 (the names are CUDA's)

import ctypes
import functools
import threading
from collections import Counter
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

from cuda.bindings import runtime as real

from tests.simulated_device.device import Capture, Operation, SimulatedDevice, SimulatedStream
from tests.simulated_device.memory import POISON, ContractViolation, Region

Success = real.cudaError_t.cudaSuccess


def simulated_cuda(device: SimulatedDevice) -> ModuleType:
    """The module to put into `sys.modules["cuda.bindings.runtime"]`."""
    module = ModuleType("cuda.bindings.runtime")
    for name in (
        "cudaError_t",
        "cudaMemcpyKind",
        "cudaStreamCaptureMode",
        "cudaDeviceAttr",
        "cudaGraphNodeType",
        "cudaStreamNonBlocking",
        "CUDART_VERSION",
    ):
        setattr(module, name, getattr(real, name))
    calls = _Calls(device)
    for name in dir(calls):
        if name.startswith("cuda"):
            setattr(module, name, _counted(device, name, getattr(calls, name)))
    module.cudaGetErrorString = real.cudaGetErrorString  # type: ignore[attr-defined]
    return module


VALUES: Counter[str] = Counter(  # that a function returns beside its status, of those that return any
    cudaGetDeviceCount=1,
    cudaGetDeviceProperties=1,
    cudaDeviceGetAttribute=1,
    cudaMemGetInfo=2,
    cudaMalloc=1,
    cudaMallocHost=1,
    cudaStreamCreateWithFlags=1,
    cudaGraphGetNodes=2,
    cudaGraphNodeGetType=1,
    cudaGraphInstantiate=1,
)


def _counted(device: SimulatedDevice, name: str, function: Callable[..., tuple]) -> Callable[..., tuple]:
    @functools.wraps(function)
    def call(*arguments: Any) -> tuple:
        with device.lock:
            device.counts[name] += 1
            fault = device.faults.get((name, device.counts[name]))
            if fault and fault.lasting:
                device.broken = fault.error
            elif fault and name != "cudaStreamEndCapture":  # which ends the capture all the same
                device.last_error = getattr(real.cudaError_t, fault.error)
                return (device.last_error, *[None] * VALUES[name])
            result = function(*arguments)
            if device.broken:
                return (getattr(real.cudaError_t, device.broken), *[None] * (len(result) - 1))
            if result[0] != Success and name != "cudaGetLastError":
                device.last_error = result[0]
            return result

    return call


class _Calls:
    def __init__(self, device: SimulatedDevice) -> None:
        self._device, self._memory = device, device.memory

    def cudaGetLastError(self) -> tuple:
        error, self._device.last_error = self._device.last_error or Success, None
        return (error,)

    # GPUs

    def cudaGetDeviceCount(self) -> tuple:
        return (Success, self._device.gpus) if self._device.gpus else (real.cudaError_t.cudaErrorNoDevice, None)

    def cudaSetDevice(self, gpu: int) -> tuple:
        self._device.current_gpu = gpu
        return (Success,)

    def cudaGetDeviceProperties(self, gpu: int) -> tuple:
        return Success, SimpleNamespace(name=self._device.name.encode())

    def cudaDeviceGetAttribute(self, attribute: Any, gpu: int) -> tuple:
        major, minor = self._device.capability.split(".")
        return Success, int(major if attribute.name.endswith("Major") else minor)

    def cudaMemGetInfo(self) -> tuple:
        self._device.check_not_capturing("cudaMemGetInfo")
        gpu = self._device.current_gpu
        return Success, self._memory.free_bytes(gpu), self._memory.limits[gpu]

    # Memory

    def cudaMalloc(self, size: int) -> tuple:
        self._device.check_not_capturing("cudaMalloc")
        if size < 1:
            raise ContractViolation("cudaMalloc: 0 bytes have no address")
        address = self._memory.allocate(size, self._device.current_gpu)
        if address is None:
            return real.cudaError_t.cudaErrorMemoryAllocation, None
        return Success, address

    def cudaFree(self, address: int) -> tuple:
        return self._free(address, "cudaFree", pinned=False)

    def cudaMallocHost(self, size: int) -> tuple:
        self._device.check_not_capturing("cudaMallocHost")
        return Success, self._memory.allocate_pinned(size)

    def cudaFreeHost(self, address: int) -> tuple:
        return self._free(address, "cudaFreeHost", pinned=True)

    def _free(self, address: int, what: str, *, pinned: bool) -> tuple:
        self._device.check_not_capturing(what)
        self._device.check_idle(self._memory.region(address, 1, what, pinned=pinned), what)
        self._memory.free(address, pinned=pinned)
        return (Success,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: Any) -> tuple:
        direction = kind.name.removeprefix("cudaMemcpy")
        from_host, to_host = direction.startswith("HostTo"), direction.endswith("ToHost")
        if direction not in ("HostToDevice", "DeviceToHost", "DeviceToDevice"):
            raise ContractViolation(f"cudaMemcpyAsync: direction {direction}")
        what = f"cudaMemcpyAsync {direction}"
        read = self._memory.region(source, size, f"{what}, source", pinned=from_host)
        write = self._memory.region(target, size, f"{what}, target", pinned=to_host)
        if read.overlaps(write):
            raise ContractViolation(f"{what}: source and target overlap")
        self._device.enqueue(int(stream), _copy(what, read, write, from_host=from_host))
        if to_host:
            ctypes.memset(target, POISON, size)  # whoever looks before the stream is synchronised finds this
        return (Success,)

    def cudaMemsetAsync(self, target: int, value: int, size: int, stream: Any) -> tuple:
        region = self._memory.region(target, size, "cudaMemsetAsync")

        def run() -> None:
            region.content[:] = value
            region.mark_written()

        self._device.enqueue(int(stream), Operation("cudaMemsetAsync", run, writes=(region,)))
        return (Success,)

    # Streams

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple:
        self._device.check_not_capturing("cudaStreamCreateWithFlags")
        if flags != real.cudaStreamNonBlocking:
            raise ContractViolation("a stream that waits for the default stream")
        handle = self._device.new_handle()
        self._device.streams[handle] = SimulatedStream(handle, self._device.current_gpu)
        return Success, real.cudaStream_t(handle)

    def cudaStreamDestroy(self, stream: Any) -> tuple:
        found = self._device.stream(int(stream), "cudaStreamDestroy")
        if found.pending or found.capture:
            raise ContractViolation("cudaStreamDestroy: the stream is still at work")
        del self._device.streams[int(stream)]
        return (Success,)

    def cudaStreamSynchronize(self, stream: Any) -> tuple:
        self._device.check_not_capturing("cudaStreamSynchronize")
        self._device.synchronize(int(stream))
        return (Success,)

    # Graphs

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> tuple:
        self._device.check_not_capturing("cudaStreamBeginCapture")
        found = self._device.stream(int(stream), "cudaStreamBeginCapture")
        if mode != real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal:
            raise ContractViolation(f"{mode.name} would hold other threads to the rules of this capture")
        found.capture = Capture(threading.get_ident())
        return (Success,)

    def cudaStreamEndCapture(self, stream: Any) -> tuple:
        found = self._device.stream(int(stream), "cudaStreamEndCapture")
        if found.capture is None or found.capture.thread != threading.get_ident():
            raise ContractViolation("cudaStreamEndCapture: this thread captures nothing there")
        capture, found.capture = found.capture, None
        if (
            capture.invalid
            or ("cudaStreamEndCapture", self._device.counts["cudaStreamEndCapture"]) in self._device.faults
        ):
            return real.cudaError_t.cudaErrorStreamCaptureInvalidated, None
        handle = self._device.new_handle()
        self._device.graphs[handle] = capture.operations
        return Success, real.cudaGraph_t(handle)

    def cudaGraphGetNodes(self, graph: Any, numNodes: int = 0) -> tuple:
        operations = self._device.graphs[int(graph)]
        first = int(graph) << 20  # a handle says which graph, and which of its nodes
        nodes = [real.cudaGraphNode_t(first + index) for index in range(min(numNodes, len(operations)))]
        return Success, nodes, len(nodes) if numNodes else len(operations)

    def cudaGraphNodeGetType(self, node: Any) -> tuple:
        graph, index = divmod(int(node), 1 << 20)
        copies = self._device.graphs[graph][index].what.startswith(("cudaMemcpy", "cudaMemset"))
        kinds = real.cudaGraphNodeType
        return Success, kinds.cudaGraphNodeTypeMemcpy if copies else kinds.cudaGraphNodeTypeKernel

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple:
        handle = self._device.new_handle()
        self._device.executables[handle] = list(self._device.graphs[int(graph)])
        return Success, real.cudaGraphExec_t(handle)

    def cudaGraphDestroy(self, graph: Any) -> tuple:
        if self._device.graphs.pop(int(graph), None) is None:
            raise ContractViolation("cudaGraphDestroy: twice")
        return (Success,)

    def cudaGraphLaunch(self, executable: Any, stream: Any) -> tuple:
        self._device.launch(int(executable), int(stream))
        return (Success,)

    def cudaGraphExecDestroy(self, executable: Any) -> tuple:
        if self._device.executables.pop(int(executable), None) is None:
            raise ContractViolation("cudaGraphExecDestroy: twice")
        return (Success,)


def _copy(what: str, source: Region, target: Region, *, from_host: bool) -> Operation:
    promised = source.content.copy() if from_host else None

    def run() -> None:
        source.check_written(what)
        if promised is not None and not (source.content == promised).all():
            raise ContractViolation(f"{what}: the host changed the source while the copy was pending")
        target.content[:] = source.content
        target.mark_written()

    return Operation(what, run, (source,), (target,))
