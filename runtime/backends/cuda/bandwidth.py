"""Measures how fast a GPU's memory is."""

from contextlib import ExitStack, closing

from starflow.runtime.backends.cuda.device import DeviceMemory, Gpu, Stream
from starflow.runtime.backends.memory_bandwidth import BandwidthProbe

BUFFER_BYTES = 1 << 30  # well beyond any L2 cache


class CudaBandwidthProbe(BandwidthProbe):
    """Copies within a GPU's memory, where a byte is read and written; BackendError if less than 2 GiB are free."""

    def __init__(self, gpu: Gpu) -> None:
        gpu.select()
        with ExitStack() as stack:
            self._stream = stack.enter_context(closing(Stream(gpu)))
            self._target, self._source = (
                stack.enter_context(closing(DeviceMemory(self._stream, BUFFER_BYTES, "measuring bandwidth")))
                for _ in range(2)
            )
            self._resources = stack.pop_all()

    def transfer(self) -> int:
        self._stream.copy(self._target, self._source, BUFFER_BYTES)
        self._stream.synchronize()
        return 2 * BUFFER_BYTES

    def close(self) -> None:
        self._resources.close()
