"""How fast a GPU moves memory, measured next to what is compared with it."""

import statistics
import time
from contextlib import ExitStack, closing
from typing import Self

from starflow.runtime.backends.cuda.device import DeviceMemory, Gpu, Stream

BUFFER_BYTES = 1 << 30  # well beyond any L2 cache
WARM_UP_PASSES, PASSES = 2, 7


class CudaBandwidthProbe:
    """Copies within a GPU's memory; a byte copied is one read and one written.

    Args:
        gpu: The GPU.

    Raises:
        BackendError: it has less than 2 GiB free.
    """

    def __init__(self, gpu: Gpu) -> None:
        gpu.select()
        with ExitStack() as stack:
            self._stream = stack.enter_context(closing(Stream(gpu)))
            self._buffers = [
                stack.enter_context(closing(DeviceMemory(self._stream, BUFFER_BYTES, "measuring bandwidth")))
                for _ in range(2)
            ]
            self._resources = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def measure(self) -> float:
        """Bytes a second, read and written: the median of some copies."""
        for _ in range(WARM_UP_PASSES):
            self._copy()
        return statistics.median(self._copy() for _ in range(PASSES))

    def _copy(self) -> float:
        target, source = self._buffers
        start = time.perf_counter()
        self._stream.copy(target, source, BUFFER_BYTES)
        self._stream.synchronize()
        return 2 * BUFFER_BYTES / (time.perf_counter() - start)
