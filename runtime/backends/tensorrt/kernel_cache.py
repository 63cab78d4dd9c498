"""Kernels that TensorRT RTX compiles on the machine an engine runs on, kept on disk for the next start."""

import contextlib
import os
from pathlib import Path
from typing import Any

from starflow.runtime.plain.atomic_write import atomic_file


class KernelCache:
    """The runtime configuration of an RTX engine, with a cache that outlives the process.

    The cache is the file `<engine>.runtime-cache` next to the engine. TensorRT refuses a cache from another GPU, driver or
    release, and it is replaced. If the folder cannot be written, nothing is kept and every start compiles again.
    """

    def __init__(self, trt: Any, engine: Any, path: Path) -> None:
        self._path = path.with_suffix(".runtime-cache")
        self.config = engine.create_runtime_config()  # `trt.IRuntimeConfig` for execution contexts
        self.config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # this package captures graphs itself
        # A kernel that is compiled in the background would miss the capture, and the graph would always replay its slow substitute.
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self.config.dynamic_shapes_kernel_specialization_strategy = eager
        self._cache = self.config.create_runtime_cache()
        self._on_disk = b""
        with contextlib.suppress(OSError):
            self._on_disk = self._path.read_bytes()
            self._cache.deserialize(self._on_disk)
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the compiled kernels to disk; StarflowError if it is full or fails."""
        serialized = self._cache.serialize()
        content = b"" if serialized is None else bytes(serialized)
        if content in (b"", self._on_disk) or not os.access(self._path.parent, os.W_OK):
            return
        with atomic_file(self._path) as temporary:
            temporary.write_bytes(content)
