"""Small wrong programs: each breaks one rule of CUDA or TensorRT, and the simulated device must say so."""

import ctypes
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from starflow.runtime.backends.tensorrt.flavour import load_flavour
from starflow.runtime.backends.tensorrt.messages import MessageLog
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import fixed_shape
from tests.simulated_device.device import SimulatedDevice
from tests.simulated_device.fixtures import Simulate
from tests.simulated_device.memory import POISON, ContractViolation, byte_count

SIZE = 1024


class Cuda:
    """CUDA as the programs below write it: one result, no status, sizes of SIZE bytes."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self.module: ModuleType = importlib.import_module("cuda.bindings.runtime")
        self.stream = self.new_stream()

    def __call__(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self.module, f"cuda{name}")(*arguments)
        assert not error
        return values[0] if values else None

    def new_stream(self) -> Any:
        return self("StreamCreateWithFlags", self.module.cudaStreamNonBlocking)

    def malloc(self, size: int = SIZE) -> int:
        return int(self("Malloc", size))

    def zeroed(self, size: int = SIZE) -> int:
        address = self.malloc(size)
        self("MemsetAsync", address, 0, size, self.stream)
        self.synchronize()
        return address

    def copy(self, target: int, source: int, kind: str, size: int = SIZE) -> None:
        direction = getattr(self.module.cudaMemcpyKind, f"cudaMemcpy{kind}")
        self("MemcpyAsync", target, source, size, direction, self.stream)

    def synchronize(self) -> None:
        self("StreamSynchronize", self.stream)

    @contextmanager
    def capture(self) -> Iterator[None]:
        mode = self.module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self("StreamBeginCapture", self.stream, mode)
        yield
        self.graph = self("StreamEndCapture", self.stream)
        self.executable = self("GraphInstantiate", self.graph, 0)


@pytest.fixture
def cuda(simulate: Simulate) -> Iterator[Cuda]:
    device = simulate(gpus=2)
    yield Cuda(device)
    device.forget()


# What CUDA forbids


def frees_twice(cuda: Cuda) -> None:
    address = cuda.malloc()
    cuda("Free", address)
    cuda("Free", address)


def frees_host_memory_as_device_memory(cuda: Cuda) -> None:
    cuda("Free", cuda("MallocHost", SIZE))


def frees_what_is_in_use(cuda: Cuda) -> None:
    address = cuda.malloc()
    cuda("MemsetAsync", address, 0, SIZE, cuda.stream)
    cuda("Free", address)


def uses_what_was_freed(cuda: Cuda) -> None:
    address = cuda.malloc()
    cuda("Free", address)
    cuda("MemsetAsync", address, 0, SIZE, cuda.stream)


def reads_what_was_never_written(cuda: Cuda) -> None:
    cuda.copy(cuda("MallocHost", SIZE), cuda.malloc(), "DeviceToHost")
    cuda.synchronize()


def reads_what_was_written_in_part(cuda: Cuda) -> None:
    address = cuda.malloc()
    cuda("MemsetAsync", address, 0, SIZE - 1, cuda.stream)
    cuda.copy(cuda.malloc(), address, "DeviceToDevice")
    cuda.synchronize()


def writes_past_the_end(cuda: Cuda) -> None:
    cuda("MemsetAsync", cuda.malloc(), 0, SIZE + 1, cuda.stream)


def copies_in_the_wrong_direction(cuda: Cuda) -> None:
    cuda.copy(cuda("MallocHost", SIZE), cuda.zeroed(), "HostToDevice")


def copies_pageable_memory(cuda: Cuda) -> None:
    cuda.copy(cuda.malloc(), np.zeros(SIZE, np.uint8).ctypes.data, "HostToDevice")


def changes_a_source_too_early(cuda: Cuda) -> None:
    host = cuda("MallocHost", SIZE)
    cuda.copy(cuda.malloc(), host, "HostToDevice")
    ctypes.memset(host, 7, SIZE)
    cuda.synchronize()


def works_in_the_default_stream(cuda: Cuda) -> None:
    cuda("MemsetAsync", cuda.malloc(), 0, SIZE, 0)


def works_in_a_stream_that_is_gone(cuda: Cuda) -> None:
    cuda("StreamDestroy", cuda.stream)
    cuda("MemsetAsync", cuda.malloc(), 0, SIZE, cuda.stream)


def works_in_a_stream_of_another_gpu(cuda: Cuda) -> None:
    cuda("SetDevice", 1)
    cuda("MemsetAsync", cuda.malloc(), 0, SIZE, cuda.stream)


def races_between_streams(cuda: Cuda) -> None:
    address = cuda.malloc()
    cuda("MemsetAsync", address, 0, SIZE, cuda.stream)
    cuda("MemsetAsync", address, 1, SIZE, cuda.new_stream())


def waits_while_capturing(cuda: Cuda) -> None:
    with cuda.capture():
        cuda.synchronize()


def allocates_while_capturing(cuda: Cuda) -> None:
    with cuda.capture():
        cuda.malloc()


def works_elsewhere_while_capturing(cuda: Cuda) -> None:
    address, other = cuda.malloc(), cuda.new_stream()
    with cuda.capture():
        cuda("MemsetAsync", address, 0, SIZE, other)


def captures_for_all_threads(cuda: Cuda) -> None:
    cuda("StreamBeginCapture", cuda.stream, cuda.module.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal)


def launches_what_was_destroyed(cuda: Cuda) -> None:
    with cuda.capture():
        pass
    cuda("GraphExecDestroy", cuda.executable)
    cuda("GraphLaunch", cuda.executable, cuda.stream)


def launches_onto_freed_memory(cuda: Cuda) -> None:
    address = cuda.malloc()
    with cuda.capture():
        cuda("MemsetAsync", address, 0, SIZE, cuda.stream)
    cuda("Free", address)
    cuda("GraphLaunch", cuda.executable, cuda.stream)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (frees_twice, "after it was freed"),
        (frees_host_memory_as_device_memory, "is host memory"),
        (frees_what_is_in_use, "still uses it"),
        (uses_what_was_freed, "after it was freed"),
        (reads_what_was_never_written, "byte 0 of 1024 is read before"),
        (reads_what_was_written_in_part, "byte 1023 of 1024 is read before"),
        (writes_past_the_end, "not within any allocation"),
        (copies_in_the_wrong_direction, "is device memory"),
        (copies_pageable_memory, "not within any allocation"),
        (changes_a_source_too_early, "changed the source while"),
        (works_in_the_default_stream, "default stream"),
        (works_in_a_stream_that_is_gone, "no stream"),
        (works_in_a_stream_of_another_gpu, "stream of GPU 0"),
        (races_between_streams, "work of another stream still uses"),
        (waits_while_capturing, "cudaStreamSynchronize is called while this thread captures"),
        (allocates_while_capturing, "cudaMalloc is called while this thread captures"),
        (works_elsewhere_while_capturing, "while this thread captures"),
        (captures_for_all_threads, "other threads"),
        (launches_what_was_destroyed, "graph was destroyed"),
        (launches_onto_freed_memory, "after it was freed"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_cuda_is_held_to_its_rules(cuda: Cuda, program: Callable[[Cuda], None], message: str) -> None:
    with pytest.raises(ContractViolation, match=message):
        program(cuda)


def test_nothing_is_there_before_the_stream_is_synchronised(cuda: Cuda) -> None:
    host, address = cuda("MallocHost", SIZE), cuda.zeroed()
    cuda.copy(host, address, "DeviceToHost")
    assert ctypes.string_at(host, SIZE) == bytes([POISON]) * SIZE
    cuda.synchronize()
    assert ctypes.string_at(host, SIZE) == bytes(SIZE)


def test_a_graph_does_nothing_before_it_is_launched(cuda: Cuda) -> None:
    address = cuda.zeroed()
    with cuda.capture():
        cuda("MemsetAsync", address, 7, SIZE, cuda.stream)
    host = cuda("MallocHost", SIZE)
    for expected in (0, 7):
        cuda.copy(host, address, "DeviceToHost")
        cuda.synchronize()
        assert ctypes.string_at(host, SIZE) == bytes([expected]) * SIZE
        cuda("GraphLaunch", cuda.executable, cuda.stream)
    cuda.synchronize()


def test_other_threads_are_free_while_one_captures(cuda: Cuda) -> None:
    addresses: list[int] = []

    def work() -> None:
        other = Cuda(cuda.device)
        addresses.append(other.zeroed())

    with cuda.capture():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert addresses


def test_what_is_left_is_named(simulate: Simulate) -> None:
    device = simulate()
    cuda = Cuda(device)
    address, host = cuda.malloc(), cuda("MallocHost", SIZE)
    stream = int(cuda.stream)
    assert device.leaks() == ["1024 bytes of device memory", "1024 bytes of pinned memory", f"stream {stream}"]
    cuda("Free", address)
    cuda("FreeHost", host)
    cuda("StreamDestroy", cuda.stream)


# What TensorRT forbids


class Program:
    """A right program around one engine, for runs of two tokens, to be broken at one point."""

    def __init__(self, cuda: Cuda, bundle: Bundle) -> None:
        self.cuda = cuda
        flavour = load_flavour("tensorrt-rtx")
        self.trt: Any = flavour.trt
        self.log = MessageLog(flavour)
        self.runtime = self.trt.Runtime(self.log.logger)
        self.graph = bundle.graph(bundle.variant("portable-fp16", "portable"), 0)
        (path,) = bundle.root.glob("engines/*/*/block0*.engine")
        self.content = path.read_bytes()
        self.engine = self.runtime.deserialize_cuda_engine(self.content)
        self.config = self.engine.create_runtime_config()
        self.config.set_execution_context_allocation_strategy(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.config.cuda_graph_strategy = self.trt.CudaGraphStrategy.DISABLED
        eager = self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self.config.dynamic_shapes_kernel_specialization_strategy = eager
        self.scratch = cuda.malloc(self.engine.device_memory_size_v2)
        self.addresses = self.new_addresses()
        self.context = self.new_context(cuda.stream)

    def size(self, name: str, count: int = 2) -> int:
        spec = next(spec for spec in (*self.graph.inputs, *self.graph.outputs) if spec.name == name)
        return byte_count(fixed_shape(spec, count), spec.dtype)

    def new_addresses(self) -> dict[str, int]:
        addresses = {spec.name: self.cuda.zeroed(self.size(spec.name)) for spec in self.graph.inputs}
        for spec in self.graph.outputs:
            source = self.engine.get_aliased_input_tensor(spec.name)
            addresses[spec.name] = addresses[source] if source else self.cuda.malloc(self.size(spec.name))
        return addresses

    def new_context(self, stream: Any, addresses: dict[str, int] | None = None) -> Any:
        context = self.engine.create_execution_context(self.config)
        context.set_optimization_profile_async(1, int(stream))
        self.set_shapes(context, 2)
        for name, address in (addresses or self.addresses).items():
            context.set_tensor_address(name, address)
        context.set_device_memory(self.scratch, self.engine.device_memory_size_v2)
        return context

    def set_shapes(self, context: Any, count: int) -> None:
        for spec in self.graph.inputs:
            if "S" in spec.shape:
                context.set_input_shape(spec.name, fixed_shape(spec, count))

    def run(self) -> None:
        self.context.execute_async_v3(int(self.cuda.stream))
        self.cuda.synchronize()


@pytest.fixture
def program(cuda: Cuda, tiny_engines: Bundle) -> Program:
    return Program(cuda, tiny_engines)


def leaves_out_an_address(program: Program) -> None:
    program.context = program.engine.create_execution_context(program.config)
    program.context.set_optimization_profile_async(1, int(program.cuda.stream))
    program.set_shapes(program.context, 2)
    program.context.set_device_memory(program.scratch, program.engine.device_memory_size_v2)
    program.run()


def gives_a_cache_two_addresses(program: Program) -> None:
    program.context.set_tensor_address("key_out.0", program.cuda.zeroed(program.size("key.0")))
    program.run()


def gives_a_host_address(program: Program) -> None:
    program.context.set_tensor_address("noise", program.cuda("MallocHost", program.size("noise")))
    program.run()


def gives_too_small_a_buffer(program: Program) -> None:
    program.set_shapes(program.context, 3)
    program.run()


def overlaps_input_and_output(program: Program) -> None:
    program.context.set_tensor_address("x", program.addresses["previous"])
    program.run()


def puts_a_tensor_into_the_scratch_memory(program: Program) -> None:
    program.context.set_tensor_address("x", program.scratch)
    program.run()


def leaves_a_cache_unwritten(program: Program) -> None:
    address = program.cuda.malloc(program.size("key.0"))
    for name in ("key.0", "key_out.0"):
        program.context.set_tensor_address(name, address)
    program.run()


def leaves_the_profile(program: Program) -> None:
    program.set_shapes(program.context, 18)


def sets_shapes_before_the_profile(program: Program) -> None:
    program.set_shapes(program.engine.create_execution_context(program.config), 2)


def forgets_shapes_when_the_profile_changes(program: Program) -> None:
    program.context.set_optimization_profile_async(0, int(program.cuda.stream))
    program.run()


def gives_too_little_scratch_memory(program: Program) -> None:
    program.context.set_device_memory(program.scratch, program.engine.device_memory_size_v2 - 1)


def gives_contexts_memory_of_their_own(program: Program) -> None:
    program.config.set_execution_context_allocation_strategy(program.trt.ExecutionContextAllocationStrategy.STATIC)
    program.engine.create_execution_context(program.config)


def chooses_the_profile_in_another_stream(program: Program) -> None:
    program.context = program.new_context(program.cuda.new_stream())
    program.run()


def gives_an_address_that_is_not_aligned(program: Program) -> None:
    program.context.set_tensor_address("noise", program.cuda.zeroed(program.size("noise") + 64) + 64)
    program.run()


def asks_for_free_memory_while_capturing(program: Program) -> None:
    with program.cuda.capture():
        program.cuda("MemGetInfo")


def launches_a_graph_without_its_context(program: Program) -> None:
    program.run()
    with program.cuda.capture():
        program.context.execute_async_v3(int(program.cuda.stream))
    program.context = None
    program.cuda("GraphLaunch", program.cuda.executable, program.cuda.stream)


def shares_scratch_memory_between_streams(program: Program) -> None:
    other = program.cuda.new_stream()
    context = program.new_context(other, program.new_addresses())
    program.context.execute_async_v3(int(program.cuda.stream))
    context.execute_async_v3(int(other))


def creates_a_context_while_capturing(program: Program) -> None:
    with program.cuda.capture():
        program.engine.create_execution_context(program.config)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (leaves_out_an_address, "position has no address"),
        (gives_a_cache_two_addresses, "key_out.0 and key.0 are one cache"),
        (gives_a_host_address, "noise: 0x[0-9a-f]+ is host memory"),
        (gives_too_small_a_buffer, "previous: .* not within any allocation"),
        (overlaps_input_and_output, "output x overlaps previous"),
        (puts_a_tensor_into_the_scratch_memory, "x lies in the scratch memory"),
        (leaves_a_cache_unwritten, "input key.0: byte 0 of .* is read before"),
        (leaves_the_profile, "outside of optimisation profile 1"),
        (sets_shapes_before_the_profile, "before an optimisation profile"),
        (forgets_shapes_when_the_profile_changes, "shape of an input is not set"),
        (gives_too_little_scratch_memory, "too few or not aligned"),
        (gives_contexts_memory_of_their_own, "scratch memory of its own"),
        (chooses_the_profile_in_another_stream, "chosen in another stream"),
        (gives_an_address_that_is_not_aligned, "noise: .* is not aligned to 256 bytes"),
        (asks_for_free_memory_while_capturing, "cudaMemGetInfo is called while this thread captures"),
        (launches_a_graph_without_its_context, "context was released"),
        (shares_scratch_memory_between_streams, "work of another stream still uses"),
        (creates_a_context_while_capturing, "while this thread captures"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_tensorrt_is_held_to_its_rules(program: Program, wrong: Callable[[Program], None], message: str) -> None:
    with pytest.raises(ContractViolation, match=message):
        wrong(program)


def test_the_program_the_others_break_is_right(program: Program) -> None:
    assert not program.context.is_stream_capturable(int(program.cuda.stream)), "nothing is compiled yet"
    program.run()
    assert program.context.is_stream_capturable(int(program.cuda.stream))
    host = program.cuda("MallocHost", program.size("x"))
    program.cuda.copy(host, program.addresses["x"], "DeviceToHost", size=program.size("x"))
    program.cuda.synchronize()
    x = np.frombuffer(ctypes.string_at(host, program.size("x")), np.float32)
    assert np.isfinite(x).all()
    assert x.any()


@pytest.mark.parametrize("warm_up", ["none", "of another number of tokens", "of another profile"])
def test_a_run_that_compiles_spoils_the_capture(program: Program, warm_up: str) -> None:
    """Nothing raises: the run returns False, the capture ends with an error, and the error stays until it is asked for."""
    cuda, module = program.cuda, program.cuda.module
    if warm_up != "none":
        program.run()
        if warm_up == "of another profile":
            program.context.set_optimization_profile_async(2, int(cuda.stream))
        program.set_shapes(program.context, 2 if warm_up == "of another profile" else 1)
    cuda("StreamBeginCapture", cuda.stream, module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
    assert not program.context.execute_async_v3(int(cuda.stream))
    error, graph = module.cudaStreamEndCapture(cuda.stream)
    assert (error, graph) == (module.cudaError_t.cudaErrorStreamCaptureInvalidated, None)
    assert "capturing" in program.log.last_error()
    assert "not cleared" in " ".join(cuda.device.leaks())
    assert module.cudaGetLastError() == (error,)
    assert module.cudaGetLastError() == (module.cudaError_t.cudaSuccess,)


def test_altered_bytes_are_no_engine(program: Program) -> None:
    altered = bytearray(program.content)
    altered[len(altered) // 2] ^= 1
    assert program.runtime.deserialize_cuda_engine(bytes(altered)) is None
    assert "magicTag" in program.log.last_error()
