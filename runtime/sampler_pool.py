"""`SamplerPool`: several samplers over one copy of the weights, for a service with several threads."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Self

from numpy.typing import ArrayLike, NDArray

from starflow.runtime.backends.base import Provider
from starflow.runtime.backends.choice import BackendName
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.networks.denoising import Denoise
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.guidance import GuidanceOfImages
from starflow.runtime.sampler import Plan, Sampler


class SamplerPool:
    """Samplers that threads borrow. Each has buffers of its own, so they run at the same time; the weights exist once.

    Example:
        >>> with SamplerPool.open("digits.bundle", size=2) as pool:
        ...     images = pool.sample([3, 1, 4], guidance=2.0, seed=7)  # from any thread

    Args:
        sampler: The first sampler, which the pool owns from now on.
        size: Number of samplers.

    Raises:
        UsageError: the size is below 1.
        BackendError: memory does not suffice for so many sets of buffers.
    """

    def __init__(self, sampler: Sampler, size: int) -> None:
        self.size = size
        with ExitStack() as stack:
            self._samplers = [stack.enter_context(closing(sampler))]
            if size < 1:
                raise UsageError(f"a pool of {size} samplers: give at least 1")
            for _ in range(size - 1):
                self._samplers.append(stack.enter_context(closing(sampler.twin())))
            self._resources = stack.pop_all()
        self._free = list(self._samplers)
        self._changed = threading.Condition()
        self._is_open = True

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | Bundle,
        *,
        size: int = 2,
        backend: BackendName = "auto",
        variant: str | None = None,
        plan: Plan = "auto",
        provider: Provider = "cpu",
        threads: int = 0,
        shape: tuple[int, int] | None = None,
        batch: int | None = None,
        verify: bool = False,
        revision: str | None = None,
    ) -> Self:
        """Open a bundle; see `Sampler.open` for the errors and for what is not said here.

        Args:
            size: Number of samplers, which is how many calls run at the same time.
            threads: Threads within an operator on the CPU, for each sampler. 0 divides the cores among several samplers; one
                alone measures what is faster, as `Sampler.open` does.
        """
        if threads == 0 and size > 1:
            threads = max(1, len(os.sched_getaffinity(0)) // size)
        options: dict[str, Any] = {"backend": backend, "variant": variant, "plan": plan, "provider": provider}
        options |= {"shape": shape, "batch": batch, "verify": verify, "revision": revision}
        return cls(Sampler.open(path, threads=threads, **options), size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the samplers that are in use, then free all of them; a second call does nothing."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()  # those who wait are refused
            self._changed.wait_for(lambda: len(self._free) == self.size)
        self._resources.close()

    @contextmanager
    def sampler(self, timeout: float | None = None) -> Iterator[Sampler]:
        """Borrow a sampler that no other thread uses meanwhile.

        Args:
            timeout: Seconds to wait for one; None waits for as long as it takes.

        Raises:
            TimeoutError: all were in use for so long.
            UsageError: the pool is closed.
        """
        with self._changed:
            found = self._changed.wait_for(lambda: self._free or not self._is_open, timeout)
            if not self._is_open:
                raise UsageError("this pool is closed; open the bundle again with SamplerPool.open")
            if not found:
                raise TimeoutError(f"all {self.size} samplers were in use for {timeout} s")
            borrowed = self._free.pop()  # the one used last, whose buffers may still be in the processor's caches
        try:
            yield borrowed
        finally:
            with self._changed:
                self._free.append(borrowed)
                self._changed.notify_all()

    def load(self) -> None:
        """`Sampler.load` for every sampler, before others use the pool."""
        for sampler in self._samplers:
            sampler.load()

    def check(
        self,
        count: int,
        condition: ArrayLike | Sequence[str] | None = None,
        *,
        guidance: GuidanceOfImages = 0.0,
        denoise: Denoise = "auto",
    ) -> None:
        """`Sampler.check`, without waiting for a sampler."""
        self._samplers[0].check(count, condition, guidance=guidance, denoise=denoise)

    @property
    def bundle(self) -> Bundle:
        return self._samplers[0].bundle

    @property
    def variant(self) -> Variant:
        return self._samplers[0].variant

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def sample(self, *arguments: Any, **options: Any) -> NDArray:
        """`Sampler.sample` on a free sampler."""
        with self.sampler() as sampler:
            return sampler.sample(*arguments, **options)

    def generate(self, *arguments: Any, **options: Any) -> NDArray:
        """`Sampler.generate` on a free sampler."""
        with self.sampler() as sampler:
            return sampler.generate(*arguments, **options)
