"""How fast this machine reads memory, measured the way a step reads weights: streaming, on all threads."""

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np

BUFFER_BYTES = 256 << 20  # well beyond any last-level cache
SETTLING_PASSES, PASSES = 5, 7


class HostBandwidthProbe:
    """Measures read bandwidth; keep one and call `measure` next to what is compared with it.

    Args:
        threads: Threads that read; 0 takes one per core available.
    """

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads or len(os.sched_getaffinity(0))
        # Written, so that the pages are real; a maximum over bytes is the fastest plain read NumPy has.
        self._parts = [np.ones(BUFFER_BYTES // self._threads, np.uint8) for _ in range(self._threads)]
        self._pool = ThreadPoolExecutor(self._threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def measure(self) -> float:
        """Bytes a second: the median of some passes over the buffer, as every other figure is a median.

        ONNX Runtime's threads go on spinning for a while after a run and slow the first passes; those do not count.
        """
        for _ in range(SETTLING_PASSES):
            self._read()
        return statistics.median(self._read() for _ in range(PASSES))

    def _read(self) -> float:
        start = time.perf_counter()
        list(self._pool.map(np.maximum.reduce, self._parts))
        return sum(part.nbytes for part in self._parts) / (time.perf_counter() - start)
