"""Measures how fast memory is, next to the times it is compared with."""

import os
import statistics
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np

BUFFER_BYTES = 256 << 20  # well beyond any last-level cache


class BandwidthProbe(ABC):
    """Measures the bandwidth of a memory and owns what that needs. Keep one open and call `measure` next to other timings."""

    # ONNX Runtime's threads spin for a while after a run, and a GPU raises its clocks: the first passes do not count.
    settling_passes, passes = 5, 7

    def measure(self) -> float:
        """Bytes per second: the median of several passes."""
        for _ in range(self.settling_passes):
            self.transfer()
        return statistics.median(self._rate() for _ in range(self.passes))

    def _rate(self) -> float:
        start = time.perf_counter()
        transferred = self.transfer()
        return transferred / (time.perf_counter() - start)

    @abstractmethod
    def transfer(self) -> int:
        """Do one pass and return the number of bytes read and written."""

    @abstractmethod
    def close(self) -> None:
        """Free the buffers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HostBandwidthProbe(BandwidthProbe):
    """Reads host memory the way a step reads weights: streaming, on `threads` threads, 0 for one on each core."""

    def __init__(self, threads: int = 0) -> None:
        threads = threads or len(os.sched_getaffinity(0))
        # Ones rather than zeros, so that the pages exist. A maximum over bytes is NumPy's fastest plain read.
        self._parts = [np.ones(BUFFER_BYTES // threads, np.uint8) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads)

    def transfer(self) -> int:
        list(self._pool.map(np.maximum.reduce, self._parts))
        return sum(part.nbytes for part in self._parts)

    def close(self) -> None:
        self._pool.shutdown()
