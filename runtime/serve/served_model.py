"""A bundle behind a service: a batcher for each of its shapes, opened when it is first asked for."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.plain.errors import BackendError, UsageError
from starflow.runtime.sampler_pool import SamplerPool
from starflow.runtime.serve.batcher import Batcher, BatchReport, QueueFullError
from starflow.runtime.serve.named_tensors import takes

Shape = tuple[int, int]

logger = logging.getLogger("starflow.serve")


@dataclass(frozen=True)
class Serving:
    """How bundles are served.

    Attributes:
        samplers: Number of samplers of each shape, which is how many batches run at the same time.
        max_waiting: Number of images that may wait for a shape.
        patience: Seconds that an image waits for others to fill its batch.
        options: Arguments of `SamplerPool.open`: backend, variant, plan, provider, threads.
    """

    samplers: int = 1
    max_waiting: int = 64
    patience: float = 0.005
    options: dict[str, Any] = field(default_factory=dict)


class ServedModel:
    """A bundle and its batchers; the default shape is loaded at once.

    Attributes:
        bandwidth: Bytes a second that the memory of the weights gives to one sampler, measured before anything runs; None
            where it cannot be measured.

    Args:
        name: What requests call it.
        on_batch: Called with the name and the report of every batch.
    """

    def __init__(
        self, name: str, bundle: Bundle, serving: Serving, on_batch: Callable[[str, BatchReport], None]
    ) -> None:
        self.name, self.bundle = name, bundle
        self._serving, self._on_batch = serving, on_batch
        self._batchers: dict[Shape | None, Batcher] = {}
        self._opening = threading.Lock()
        self.bandwidth: float | None = None
        self.batcher()

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest at the default shape."""
        return self.bundle.at_shape(None).manifest

    @cached_property
    def takes(self) -> str:
        """What conditions an image: `captions`, `classes`, `features` or `nothing`."""
        return takes(self.manifest)

    @cached_property
    def sizes(self) -> dict[str, Shape | None]:
        """The shapes of the bundle by the size of their images, `WIDTHxHEIGHT` in pixels, the default one first."""
        found: dict[str, Shape | None] = {}
        for shape in self.bundle.manifest.sizes or (None,):
            pixels = self.bundle.at_shape(shape).manifest.output_shape
            found[f"{pixels[-1]}x{pixels[-2]}" if len(pixels) == 3 else "auto"] = shape if found else None
        return found

    def batcher(self, size: str | None = None) -> Batcher:
        """The batcher for images of a size; see `sizes`. The first call for a size loads it, which takes a while.

        Raises:
            UsageError: the bundle has no such size.
        """
        shape = self._shape(size)
        with self._opening:
            if shape not in self._batchers:
                pool = SamplerPool.open(self.bundle, size=self._serving.samplers, shape=shape, **self._serving.options)
                try:
                    pool.load()
                    if not self._batchers:
                        self.bandwidth = self._measured_bandwidth(pool)
                except BaseException:
                    pool.close()
                    raise
                self._batchers[shape] = Batcher(
                    pool,
                    max_waiting=self._serving.max_waiting,
                    patience=self._serving.patience,
                    on_batch=lambda report: self._on_batch(self.name, report),
                )
            return self._batchers[shape]

    def loaded_batcher(self, size: str | None = None) -> Batcher | None:
        """`batcher` if it need not be loaded, and else None.

        Raises:
            UsageError: the bundle has no such size.
        """
        return self._batchers.get(self._shape(size))

    def _shape(self, size: str | None) -> Shape | None:
        if size is None or size == "auto":
            return next(iter(self.sizes.values()))
        if size not in self.sizes:
            raise UsageError(f"size {size!r}: {self.name} makes {', '.join(self.sizes)}")
        return self.sizes[size]

    def refusal(self) -> QueueFullError | None:
        """Why it takes no image of any size now; None if it may take one."""
        batchers = list(self._batchers.values())
        refusals = [refusal for batcher in batchers if (refusal := batcher.refusal())]
        if len(refusals) < len(self.sizes):  # a size that is not loaded has an empty queue
            return None
        return min(refusals, key=lambda refusal: refusal.retry_after)

    def _measured_bandwidth(self, pool: SamplerPool) -> float | None:
        try:
            with pool.sampler() as sampler, sampler.backend.bandwidth_probe() as probe:
                return probe.measure()
        except BackendError as error:
            logger.warning("%s: /metrics goes without the memory bandwidth: %s", self.name, error)
            return None

    @property
    def most_images(self) -> int:
        """Largest number of images of one request."""
        return self._serving.max_waiting

    @property
    def waiting(self) -> int:
        """Number of images that wait, of all shapes."""
        return sum(batcher.waiting for batcher in list(self._batchers.values()))

    def close(self, timeout: float | None = None) -> None:
        """Finish what was ordered; see `Batcher.close`."""
        for batcher in self._batchers.values():
            batcher.close(timeout)
