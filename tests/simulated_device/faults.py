"""Letting each call of CUDA fail in turn, and seeing what is left afterwards."""

import gc

from tests.simulated_device.device import Fault, SimulatedDevice

# Every function of CUDA that a backend calls, but those that free something: see `Gpu.release`.
FUNCTIONS = (
    *("cudaGetDeviceCount", "cudaSetDevice", "cudaGetDeviceProperties", "cudaDeviceGetAttribute"),
    *("cudaStreamCreateWithFlags", "cudaStreamSynchronize", "cudaMalloc", "cudaMallocHost"),
    *("cudaMemcpyAsync", "cudaMemsetAsync", "cudaStreamBeginCapture", "cudaStreamEndCapture"),
    *("cudaGraphInstantiate", "cudaGraphGetNodes", "cudaGraphNodeGetType", "cudaGraphLaunch"),
)
CALLED_TO_FREE = {"cudaSetDevice", "cudaStreamSynchronize"}  # among others: their last calls may fail too
FREEING = {"cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaGraphDestroy", "cudaGraphExecDestroy"}


def cuda_calls(device: SimulatedDevice) -> dict[str, int]:
    """How often each function of CUDA was called."""
    return {name: count for name, count in device.counts.items() if name.startswith("cuda")}


def some_calls(function: str, count: int) -> list[int]:
    """Numbers of the calls to let fail: the first, the last, and some between."""
    last = {count // 2} if function in CALLED_TO_FREE else {count // 2, count - 1, count}
    return sorted({1, 2, *last} & set(range(1, count + 1)))


def lose(device: SimulatedDevice, function: str, number: int) -> None:
    """Lose the device in a call that is to come, counted from the next one."""
    device.faults[function, device.counts[function] + number] = Fault("cudaErrorLaunchFailure", lasting=True)


def assert_released(device: SimulatedDevice) -> None:
    """Memory and streams are released at once; objects that hang in a cycle with the exception, when it is collected."""
    assert not device.memory.leaks() and not device.streams
    if device.leaks():
        gc.collect()
    assert not device.leaks()
