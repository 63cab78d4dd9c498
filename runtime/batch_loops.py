"""The loops of a sampler: one for each batch size of its bundle, opened when images first need it."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

from starflow.runtime.backends.base import Backend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.families import open_loop, resolve_plan
from starflow.runtime.family import FamilyLoop


class OpenLoop(NamedTuple):
    """A loop, and the backend with its buffers."""

    backend: Backend
    loop: FamilyLoop


class BatchLoops:
    """Loops of one variant by one plan. All of them share what the backend shares with its twins.

    Args:
        bundle: The bundle at one shape, with its batch sizes.
        backend: Runs the largest batch size; closed with the loops.
        plan: See `Sampler.open`. `auto` takes the plan that is stored for each batch size.

    Raises:
        UsageError: the plan does not fit every batch size.
    """

    def __init__(self, bundle: Bundle, variant: Variant, backend: Backend, plan: Any) -> None:
        self._bundles = {batch: bundle.at_batch(batch) for batch in bundle.manifest.batch_sizes}
        self._variant = variant
        self._plan = self._checked(plan)
        self._opened = {bundle.manifest.batch: self._open(bundle.manifest.batch, backend)}

    @property
    def sizes(self) -> Sequence[int]:
        """The batch sizes, the largest first."""
        return tuple(self._bundles)

    @property
    def largest(self) -> OpenLoop:
        """The loop of the largest batch size, which is always open."""
        return self._opened[self.sizes[0]]

    def of(self, batch: int) -> FamilyLoop:
        """The loop of a batch size.

        Raises:
            BackendError: memory does not suffice to open it.
        """
        if batch not in self._opened:
            with ExitStack() as stack:
                backend = stack.enter_context(closing(self.largest.backend.at_batch(self._bundles[batch])))
                self._opened[batch] = self._open(batch, backend)
                stack.pop_all()
        return self._opened[batch].loop

    @property
    def decoding(self) -> str:
        """The plan in a few words, that of each batch size if they differ."""
        words = {batch: self._open(batch, self.largest.backend).loop.decoding for batch in self.sizes}
        if len(set(words.values())) == 1:
            return self.largest.loop.decoding
        return "; ".join(f"batches of {batch} {decoding}" for batch, decoding in words.items())

    def follow(self, plan: Any) -> None:
        """Go on by another plan; UsageError, and nothing changes, if it does not fit every batch size."""
        self._plan = self._checked(plan)
        self._opened = {batch: self._open(batch, opened.backend) for batch, opened in self._opened.items()}

    def twin(self) -> "BatchLoops":
        """The same loops over the same weights, with buffers of their own.

        Raises:
            BackendError: memory does not suffice for another set of buffers.
        """
        made = object.__new__(type(self))
        made._bundles, made._variant, made._plan = self._bundles, self._variant, self._plan
        with ExitStack() as stack:
            made._opened = {
                batch: made._open(batch, stack.enter_context(closing(opened.backend.twin())))
                for batch, opened in self._opened.items()
            }
            stack.pop_all()
        return made

    def close(self) -> None:
        """Free the backends."""
        with ExitStack() as stack:
            for opened in self._opened.values():
                stack.enter_context(closing(opened.backend))

    def _open(self, batch: int, backend: Backend) -> OpenLoop:
        return OpenLoop(backend, open_loop(self._bundles[batch], self._variant, backend, self._plan))

    def _checked(self, plan: Any) -> Any:
        """The plan itself, read from its file once."""
        for bundle in self._bundles.values():
            plan = resolve_plan(bundle.manifest, plan) or "auto"
        return plan
