"""How fast this machine reads memory, measured the way a step reads weights: streaming, on all threads."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np

BUFFER_BYTES = 256 << 20  # well beyond any last-level cache


class BandwidthProbe:
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

    def measure(self, passes: int = 3) -> float:
        """Bytes a second, the best of a few passes over the buffer (a pass can only be slowed by others)."""
        best = 0.0
        for _ in range(passes):
            start = time.perf_counter()
            list(self._pool.map(np.maximum.reduce, self._parts))
            seconds = time.perf_counter() - start
            best = max(best, sum(part.nbytes for part in self._parts) / seconds)
        return best
