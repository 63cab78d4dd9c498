"""A GPU that does nothing before it is waited for, and then does it to the letter.

Work put into a stream is kept until the stream is synchronised: the latest a real GPU might do it. Whoever reads a result
too early finds poison, and whoever changes an input too early is told so.
"""

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.simulated_device.memory import ContractViolation, Memory, Region


@dataclass(frozen=True)
class Operation:
    """Work in a stream.

    Attributes:
        what: Its name in messages.
        run: Does it.
        reads: Memory it reads.
        writes: Memory it writes.
        needs: What must still exist when it is launched: an execution context, a session.
    """

    what: str
    run: Callable[[], None]
    reads: tuple[Region, ...] = ()
    writes: tuple[Region, ...] = ()
    needs: tuple[weakref.ref, ...] = ()

    def check_alive(self) -> None:
        for region in (*self.reads, *self.writes):
            region.check_alive()
        if any(needed() is None for needed in self.needs):
            raise ContractViolation(f"{self.what}: its session or context was released")

    def allocations(self) -> set[int]:
        return {id(region.allocation) for region in (*self.reads, *self.writes)}

    def conflicts(self, other: "Operation") -> bool:
        return any(
            one.overlaps(two)
            for mine, theirs in ((self.writes, other.writes), (self.writes, other.reads), (self.reads, other.writes))
            for one in mine
            for two in theirs
        )


@dataclass(frozen=True)
class Fault:
    """A call that fails with an error of CUDA, by its name; if it is lasting, the device is lost and all later calls fail too."""

    error: str
    lasting: bool = False


@dataclass
class Capture:
    """A capture going on: the thread that began it, and what it recorded."""

    thread: int
    operations: list[Operation] = field(default_factory=list)
    invalid: bool = False  # something in it was refused, and no graph will come of it


@dataclass
class SimulatedStream:
    """A stream of one GPU."""

    handle: int
    gpu: int
    pending: list[Operation] = field(default_factory=list)
    capture: Capture | None = None
    in_use: set[int] = field(default_factory=set)  # allocations of pending work, to find conflicts quickly


class SimulatedDevice:
    """The GPUs of one machine, shared by all threads.

    Attributes:
        counts: How often each function of CUDA and TensorRT was called.
        faults: Calls that fail: the name of a function of CUDA and the number of the call, from 1.
        capturable: Whether TensorRT's work can be captured.
        last_error: The last error of a call, until it is asked for; who handles an error has to clear it.
        broken: After work failed on the GPU, every call reports it. Set it to the name of a CUDA error.
    """

    def __init__(self, capability: str = "8.9", gpus: int = 1, memory: int = 1 << 30) -> None:
        self.capability, self.gpus = capability, gpus
        self.name = "Simulated GPU"
        self.memory = Memory([memory] * gpus)
        self.lock = threading.RLock()
        self.counts: Counter[str] = Counter()
        self.faults: dict[tuple[str, int], Fault] = {}
        self.capturable = True
        self.last_error: object = None
        self.broken = ""
        self.synchronisations: Counter[int] = Counter()  # of each stream
        self.streams: dict[int, SimulatedStream] = {}
        self.graphs: dict[int, list[Operation]] = {}
        self.executables: dict[int, list[Operation]] = {}
        self.objects: weakref.WeakSet = (
            weakref.WeakSet()
        )  # TensorRT's runtimes, engines and contexts; sessions of ONNX Runtime
        self._current = threading.local()
        self._handles = iter(range(1000, 1_000_000_000))

    # Threads

    @property
    def current_gpu(self) -> int:
        return getattr(self._current, "gpu", 0)

    @current_gpu.setter
    def current_gpu(self, gpu: int) -> None:
        self._current.gpu = gpu

    def check_not_capturing(self, what: str) -> None:
        """A thread that captures must not allocate, free or wait."""
        thread = threading.get_ident()
        if any(stream.capture and stream.capture.thread == thread for stream in self.streams.values()):
            raise ContractViolation(f"{what} is called while this thread captures a stream")

    # Streams

    def new_handle(self) -> int:
        return next(self._handles)

    def stream(self, handle: int, what: str) -> SimulatedStream:
        if handle in (0, 1, 2):
            raise ContractViolation(f"{what}: runs in a default stream, which waits for all others")
        if handle not in self.streams:
            raise ContractViolation(f"{what}: there is no stream {handle}, or no longer")
        stream = self.streams[handle]
        if stream.gpu != self.current_gpu:
            raise ContractViolation(
                f"{what}: stream of GPU {stream.gpu}, while this thread's GPU is {self.current_gpu}"
            )
        return stream

    def enqueue(self, handle: int, operation: Operation) -> None:
        """Put work into a stream, or into the graph that is captured from it."""
        stream = self.stream(handle, operation.what)
        operation.check_alive()
        if stream.capture:
            if stream.capture.thread != threading.get_ident():
                raise ContractViolation(f"{operation.what}: enters a stream that another thread captures")
            stream.capture.operations.append(operation)
            return
        self.check_not_capturing(f"{operation.what} in another stream")
        touched = operation.allocations()
        for other in self.streams.values():
            if (
                other is not stream
                and not touched.isdisjoint(other.in_use)
                and any(operation.conflicts(pending) for pending in other.pending)
            ):
                raise ContractViolation(f"{operation.what}: uses memory that work of another stream still uses")
        stream.pending.append(operation)
        stream.in_use |= touched

    def launch(self, executable: int, handle: int) -> None:
        if executable not in self.executables:
            raise ContractViolation("cudaGraphLaunch: the graph was destroyed")
        for operation in self.executables[executable]:
            self.enqueue(handle, operation)

    def synchronize(self, handle: int) -> None:
        stream = self.stream(handle, "cudaStreamSynchronize")
        self.synchronisations[handle] += 1
        pending, stream.pending, stream.in_use = stream.pending, [], set()
        for operation in pending:
            operation.check_alive()
            operation.run()

    def check_idle(self, region: Region, what: str) -> None:
        """Memory that pending work or a graph to be launched uses must stay."""
        for stream in self.streams.values():
            for operation in stream.pending:
                if any(region.overlaps(used) for used in (*operation.reads, *operation.writes)):
                    raise ContractViolation(f"{what}: {operation.what} still uses it")

    # Libraries

    def reserve(self, owner: object, size: int) -> None:
        """Memory that an object of TensorRT or ONNX Runtime holds as long as it lives."""
        gpu = self.current_gpu
        self.objects.add(owner)
        self.memory.reserved[gpu] += size

        def release() -> None:
            self.memory.reserved[gpu] -= size

        weakref.finalize(owner, release)

    # The end

    def forget(self) -> None:
        """Release everything, for programs that are wrong on purpose and end anywhere."""
        self.memory.clear()
        self.last_error = None
        for handles in (self.streams, self.graphs, self.executables):
            handles.clear()
        self.objects.clear()

    def leaks(self) -> list[str]:
        """Everything that was not released."""
        found = self.memory.leaks()
        found += [f"stream {handle}" for handle in self.streams]
        found += [f"graph {handle}" for handle in (*self.graphs, *self.executables)]
        found += [f"the handled error {self.last_error}, which was not cleared"] if self.last_error else []
        found += [type(each).__name__ for each in self.objects]
        return found
