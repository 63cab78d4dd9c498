"""The interface of a backend for continuous flows: a velocity graph, run for every pass of an integration.

A backend adds buffers and the hot loop, `advance`: one run of the graph for each pass, with every output `*_next` fed back to its
input. The host works here per integration, or per evaluation of an adaptive solver.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.bundle.graph_spec import GraphSpec, fixed_shape

STATE = ("pass", "x", "point", "total")  # inputs that an output called `<name>_next` replaces


@dataclass(frozen=True)
class ContinuousInputs:
    """The inputs of a velocity graph besides point and time."""

    # [rows, m, width] float32, [conditional, null] if the graph is guided; for models conditioned on features.
    condition: NDArray | None
    label: NDArray | None  # [rows] int64, for models conditioned on classes
    guidance: NDArray  # [B] float32 weights


class ContinuousRunner(ABC):
    """Runs a velocity graph and owns its buffers, which have the names of the graph's inputs."""

    def __init__(self, graph: GraphSpec) -> None:
        self.graph = graph
        self._names = frozenset(spec.name for spec in graph.inputs)
        (table,) = (spec for spec in graph.inputs if spec.role == "passes")
        self._table = np.zeros(fixed_shape(table), np.float32)

    # What a backend adds

    @abstractmethod
    def store(self, name: str, value: NDArray) -> None:
        """Fill an input buffer."""

    @abstractmethod
    def fetch(self, name: str) -> NDArray:
        """An input of the next run, or the last `velocity`, on the host; valid until the next run."""

    @abstractmethod
    def advance(self, passes: int) -> None:
        """Run the next passes of the table."""

    # Integrating

    @property
    def max_passes(self) -> int:
        """Largest number of passes in one `load`."""
        return len(self._table)

    def condition(self, inputs: ContinuousInputs) -> None:
        """Store the inputs of the velocity besides point and time."""
        for name, value in vars(inputs).items():
            if name in self._names and value is not None:
                self.store(name, value)

    def guide(self, weights: NDArray) -> None:
        """Store the guidance weights of the passes to come, [B] float32."""
        self.store("guidance", weights)

    def start(self, x: NDArray) -> None:
        """Start an integration from x [B, *data_shape] float32."""
        for name in ("x", "point", "total"):
            self.store(name, x)

    def load(self, table: NDArray) -> None:
        """Store the next passes, at most `max_passes`: [n, 4], see `starflow.runtime.ode.fixed_step`."""
        self._table[: len(table)] = table
        self.store("passes", self._table)
        self.store("pass", np.zeros(1, np.int64))

    def read(self) -> NDArray:
        """A copy of the state after the last finished step, [B, *data_shape] float32."""
        return self.fetch("x").copy()

    def velocity(self, x: NDArray, time: float) -> NDArray:
        """A copy of v(x, t), [B, *data_shape] float32. This ends an integration under way."""
        self.load(np.array([[time, 0, 0, 0]]))
        self.store("point", x)
        self.advance(1)
        return self.fetch("velocity").copy()
