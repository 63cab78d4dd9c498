"""A GPU through CUDA's runtime API: checked calls, memory, streams and graphs. `close` may be called more than once.

`cuda-python` is imported when a `Gpu` is created, so importing this module is cheap and needs no GPU.
"""

import ctypes
import importlib
import threading
from collections.abc import Callable
from math import prod
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import DTypeLike, NDArray

from starflow.runtime.backends.cuda.driver import too_old_driver
from starflow.runtime.plain.errors import BackendError, UsageError

# Loading an engine and capturing a graph exclude each other in a process: what a library does while it loads (allocating, waiting
# for the whole device) is forbidden while a stream is captured, in some releases by whichever thread.
LOADING = threading.RLock()

# Not one of the extras that bring it: `gpu` also brings a build of ONNX Runtime, and there may be another.
INSTALL_CUDA_PYTHON = "pip install 'cuda-python<14'"
ELSEWHERE = "use the onnxruntime backend on the CPU, or see what this machine can do with `starflow doctor`"


class CaptureRefusedError(BackendError):
    """Work cannot be captured into a CUDA graph; it may well run without one."""


class Gpu:
    """One GPU of this machine.

    Every thread has its own current device, so methods that are called from outside call `select` first.

    Raises:
        BackendError: cuda-python is not installed, there is no GPU, or its driver is too old.
        UsageError: there is no GPU with this index.
    """

    def __init__(self, index: int = 0) -> None:
        self.cuda = _load_cuda()
        self.index = index  # counted by CUDA from 0
        error, count = self.cuda.cudaGetDeviceCount()
        if error or not count:
            reason = self.reason(error) if error else "none is visible"
            self.forget_error()
            if old := too_old_driver("cuda-python", str(self.cuda.CUDART_VERSION // 1000)):
                reason = old
            raise BackendError(f"no usable NVIDIA GPU or driver ({reason}); {ELSEWHERE}")
        if not 0 <= index < count:
            raise UsageError(f"GPU {index}: this machine has {count}, counted from 0")
        self.select()
        self.name: str = self.call("cudaGetDeviceProperties", index).name.decode().rstrip("\0")
        attribute = self.cuda.cudaDeviceAttr
        major = self.call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, index)
        minor = self.call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, index)
        self.compute_capability = f"{major}.{minor}"  # such as "8.9"

    def select(self) -> None:
        """Make this GPU the calling thread's current one."""
        self.call("cudaSetDevice", self.index)

    def memory(self) -> tuple[int, int]:
        """Free and total memory in bytes."""
        free, total = self.call("cudaMemGetInfo")
        return free, total

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of `cuda.bindings.runtime` and return its value, or a tuple if it has several.

        Raises:
            BackendError: the call failed, or earlier work of the GPU did.
        """
        error, *values = getattr(self.cuda, function)(*arguments)
        if error:
            self.fail(function, error)
        return values[0] if len(values) == 1 else tuple(values)

    def release(self, function: str, *arguments: Any) -> None:
        """Call a function that frees something, and ignore its status.

        Nothing can be done about a failure, and after a failed kernel every call returns the error of that kernel, which was
        raised before.
        """
        if getattr(self.cuda, function)(*arguments)[0]:
            self.forget_error()

    def fail(self, function: str, error: Any) -> NoReturn:
        self.forget_error()
        raise BackendError(f"{function} failed on GPU {self.index}: {self.reason(error)}")

    def forget_error(self) -> None:
        """Clear the thread's last error, which is being handled: libraries would take it for one of their own calls."""
        self.cuda.cudaGetLastError()

    def reason(self, error: Any) -> str:
        """Name and text of a CUDA error."""
        text = self.cuda.cudaGetErrorString(error)[1]
        return f"{error.name}: {text.decode() if isinstance(text, bytes) else text}"


class _Memory:
    """Memory that a stream's work uses. `close` waits for that work before it frees the memory."""

    _free: str  # the function that frees it
    address: int  # 0 once it is freed

    def __init__(self, stream: "Stream", size: int) -> None:
        self._stream, self.size = stream, size

    def close(self) -> None:
        if self.address:
            self._stream.drain()
            self._stream.gpu.release(self._free, self.address)
            self.address = 0


class DeviceMemory(_Memory):
    """GPU memory for `what`, aligned to 256 bytes, not initialised; BackendError if the GPU has too little."""

    _free = "cudaFree"

    def __init__(self, stream: "Stream", size: int, what: str) -> None:
        super().__init__(stream, size)
        gpu = stream.gpu
        error, self.address = gpu.cuda.cudaMalloc(size)
        if error == gpu.cuda.cudaError_t.cudaErrorMemoryAllocation:
            gpu.forget_error()
            free, total = gpu.memory()
            raise BackendError(
                f"{what} needs {size:,} bytes of GPU memory, {free:,} of {total:,} are free; "
                "free some, or export with a smaller --batch"
            )
        if error:
            gpu.fail("cudaMalloc", error)


class PinnedMemory(_Memory):
    """Host memory for `what` that the GPU copies from and to without waiting for the CPU; BackendError if there is too little."""

    _free = "cudaFreeHost"

    def __init__(self, stream: "Stream", size: int, what: str) -> None:
        super().__init__(stream, size)
        gpu = stream.gpu
        error, self.address = gpu.cuda.cudaMallocHost(size)
        if error == gpu.cuda.cudaError_t.cudaErrorMemoryAllocation:
            gpu.forget_error()
            raise BackendError(
                f"{what} needs {size:,} bytes of pinned host memory, which the system does not give; free some host memory, "
                "or raise the limit on locked memory (ulimit -l)"
            )
        if error:
            gpu.fail("cudaMallocHost", error)

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
        """Its first bytes as an array, which must not be used after `close`."""
        size = prod(shape) * np.dtype(dtype).itemsize
        assert size <= self.size
        return np.frombuffer(memoryview((ctypes.c_char * size).from_address(self.address)), dtype).reshape(shape)


class Stream:
    """A queue of work that waits neither for the default stream nor for the streams of other samplers.

    All methods except `synchronize` and `drain` return before the work is done.
    """

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self._open = gpu, True
        self._stream = gpu.call("cudaStreamCreateWithFlags", gpu.cuda.cudaStreamNonBlocking)

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self._stream)

    def upload(self, target: DeviceMemory, source: PinnedMemory, size: int) -> None:
        self._copy(target.address, source.address, size, "cudaMemcpyHostToDevice")

    def download(self, target: PinnedMemory, source: DeviceMemory, size: int) -> None:
        self._copy(target.address, source.address, size, "cudaMemcpyDeviceToHost")

    def copy(
        self, target: DeviceMemory, source: DeviceMemory, size: int, *, target_offset: int = 0, source_offset: int = 0
    ) -> None:
        """Copy `size` bytes; offsets are in bytes."""
        self._copy(target.address + target_offset, source.address + source_offset, size, "cudaMemcpyDeviceToDevice")

    def zero(self, target: DeviceMemory) -> None:
        self.fill(target, 0)

    def fill(self, target: DeviceMemory, value: int) -> None:
        """Set every byte."""
        self.gpu.call("cudaMemsetAsync", target.address, value, target.size, self._stream)

    def synchronize(self) -> None:
        """Wait until all work is done; BackendError if some of it failed."""
        self.gpu.call("cudaStreamSynchronize", self._stream)

    def drain(self) -> None:
        """Wait until all work is over, done or failed: memory that it uses must not be freed earlier."""
        self.gpu.release("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> "Graph":
        """Record what `work` puts into this stream, without running it.

        The rules of capturing (no allocation, no waiting) hold for this thread only, so that other samplers can go on.

        Raises:
            CaptureRefusedError: something in `work` cannot be captured. The stream is as before.
        """
        gpu = self.gpu
        mode = gpu.cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        gpu.call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            # A stream that is still capturing cannot even be waited for.
            error, graph = gpu.cuda.cudaStreamEndCapture(self._stream)
            if error:
                gpu.forget_error()
            else:
                gpu.release("cudaGraphDestroy", graph)
            raise
        error, graph = gpu.cuda.cudaStreamEndCapture(self._stream)
        if error:
            gpu.forget_error()
            raise CaptureRefusedError(f"cudaStreamEndCapture: {gpu.reason(error)}")
        try:
            kernels = self._kernels(graph)  # first, because it may fail as well
            return Graph(self, gpu.call("cudaGraphInstantiate", graph, 0), kernels)
        finally:
            gpu.release("cudaGraphDestroy", graph)

    def launch(self, executable: Any, times: int) -> None:
        """Put an instantiated graph into this stream, `times` times."""
        launch, stream = self.gpu.cuda.cudaGraphLaunch, self._stream
        for _ in range(times):
            (error,) = launch(executable, stream)
            if error:
                self.gpu.fail("cudaGraphLaunch", error)

    def close(self) -> None:
        if self._open:
            self._open = False
            self.gpu.release("cudaStreamDestroy", self._stream)

    def _kernels(self, graph: Any) -> int:
        _, count = self.gpu.call("cudaGraphGetNodes", graph, 0)
        nodes, _ = self.gpu.call("cudaGraphGetNodes", graph, count)
        kernel = self.gpu.cuda.cudaGraphNodeType.cudaGraphNodeTypeKernel
        return sum(self.gpu.call("cudaGraphNodeGetType", node) == kernel for node in nodes)

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        direction = getattr(self.gpu.cuda.cudaMemcpyKind, kind)
        self.gpu.call("cudaMemcpyAsync", target, source, size, direction, self._stream)


class Repeated:
    """Work that could not be captured, put into the stream anew for every launch: the same results, more work for the host."""

    kernels: int | None = None  # unknown

    def __init__(self, work: Callable[[], None]) -> None:
        self._work: Callable[[], None] | None = work

    def launch(self, times: int = 1) -> None:
        """Put the work into the stream, `times` times; returns before it is done."""
        assert self._work
        for _ in range(times):
            self._work()

    def close(self) -> None:
        self._work = None  # it holds execution contexts


class Graph:
    """Captured work that can be launched any number of times into the stream it was captured from."""

    def __init__(self, stream: Stream, executable: Any, kernels: int) -> None:
        self._stream, self._executable, self._open = stream, executable, True
        self.kernels: int | None = kernels  # in one launch

    def launch(self, times: int = 1) -> None:
        """Put the work into the stream, `times` times; returns before it is done."""
        self._stream.launch(self._executable, times)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._stream.drain()
            self._stream.gpu.release("cudaGraphExecDestroy", self._executable)


def _load_cuda() -> ModuleType:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ModuleNotFoundError:
        raise BackendError(f"cuda-python is not installed: {INSTALL_CUDA_PYTHON}; {ELSEWHERE}") from None
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackendError(f"cuda-python is installed but does not load: {reason}; {ELSEWHERE}") from None
