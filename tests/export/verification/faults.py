"""Routes that go wrong in ways an engine could, by a fault planted in a real backend."""

from collections.abc import Callable

import numpy as np

from starflow.export.verification.routes import Route
from starflow.runtime.backends.base import Backend
from starflow.runtime.backends.block_runner import BlockInputs, BlockRunner
from starflow.runtime.backends.continuous_runner import ContinuousRunner
from starflow.runtime.backends.memory_bandwidth import BandwidthProbe
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BackendError

Fault = Callable[[BlockRunner], None]


class FaultyBackend(Backend):
    """Hands out the runners of another backend, each changed by a fault once."""

    name = "faulty"

    def __init__(self, backend: Backend, fault: Fault) -> None:
        self._backend, self._fault = backend, fault
        self._runners: dict[int, BlockRunner] = {}

    def block_runner(self, block: int) -> BlockRunner:
        if block not in self._runners:
            self._runners[block] = self._backend.block_runner(block)
            self._fault(self._runners[block])
        return self._runners[block]

    def continuous_runner(self) -> ContinuousRunner:
        return self._backend.continuous_runner()

    def bandwidth_probe(self) -> BandwidthProbe:
        return self._backend.bandwidth_probe()

    def twin(self) -> "FaultyBackend":
        return FaultyBackend(self._backend.twin(), self._fault)

    def at_batch(self, bundle: Bundle) -> "FaultyBackend":
        return FaultyBackend(self._backend.at_batch(bundle), self._fault)

    def close(self) -> None:
        self._backend.close()


def faulty(route: Route, fault: Fault, name: str = "faulty") -> Route:
    """A route like another one, with a fault."""
    return Route(name, route.bundle, route.variant, lambda: FaultyBackend(route.open(), fault))


def nan_at(block: int, position: int, image: int, sequences: int | None = None) -> Fault:
    """What the graph computes at one position of one block is NaN, in its first `sequences` sequences."""

    def plant(runner: BlockRunner) -> None:
        prefill, seen = runner.prefill, 0

        def poisoned(inputs: BlockInputs) -> None:
            nonlocal seen
            prefill(inputs)
            seen += 1
            if sequences is None or seen <= sequences:
                noise = runner.fetch("noise").copy()
                noise[image, position] = np.nan
                runner.store("noise", noise)

        if runner.block.index == block:
            runner.prefill = poisoned  # type: ignore[method-assign]

    return plant


def more_guidance(runner: BlockRunner) -> None:
    """The guidance weight is one per cent too high."""
    prefill = runner.prefill

    def changed(inputs: BlockInputs) -> None:
        prefill(inputs)
        runner.store("guidance", runner.fetch("guidance") * np.float32(1.01))

    if "guidance" in runner.specs:
        runner.prefill = changed  # type: ignore[method-assign]


def lost_first_key(runner: BlockRunner) -> None:
    """A chunk forgets the key of the first position, as a cache written to the wrong place would."""
    run = runner.run

    def changed(count: int) -> None:
        run(count)
        keys = runner.fetch("key.0").copy()
        keys[..., 0, :] = 0
        runner.store("key.0", keys)

    runner.run = changed  # type: ignore[method-assign]


def broken(bundle: Bundle, route: Route) -> Route:
    """A route that cannot be opened."""

    def refuse() -> Backend:
        raise BackendError("the engine is of another release; build it again")

    return Route("broken", bundle, route.variant, refuse)
