"""What every backend does alike with a velocity graph: the state it integrates, the table of passes, single velocities.

A backend adds buffers and `advance`, the hot loop: one run of the graph for each pass, every `*_next` fed back to where it came
from. Everything here is host work per integration, or per evaluation of an adaptive solver.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.bundle.graph_spec import GraphSpec, fixed_shape

STATE = ("pass", "x", "point", "total")  # inputs that an output called `<name>_next` replaces


@dataclass(frozen=True)
class ContinuousInputs:
    """What a velocity depends on besides point and time.

    Attributes:
        condition: [rows, m, width] float32, [conditional, null] where the graph is guided; for models of features.
        label: [rows] int64, for models of classes.
        guidance: [B] float32 weights.
    """

    condition: NDArray | None
    label: NDArray | None
    guidance: NDArray


class ContinuousRunner(ABC):
    """Runs a velocity graph and owns its buffers, which go by the names of the graph's inputs.

    Args:
        graph: The velocity graph in the chosen variant.
    """

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
        """An input of the next run, or `velocity`, the last one that was evaluated; on the host, until the next run."""

    @abstractmethod
    def advance(self, passes: int) -> None:
        """Do the next passes of the table."""

    # What the loop asks for

    @property
    def max_passes(self) -> int:
        """Most passes of one `load`."""
        return len(self._table)

    def condition(self, inputs: ContinuousInputs) -> None:
        """Take what the velocity depends on."""
        for name, value in vars(inputs).items():
            if name in self._names and value is not None:
                self.store(name, value)

    def start(self, x: NDArray) -> None:
        """Start an integration from x [B, *data_shape] float32."""
        for name in ("x", "point", "total"):
            self.store(name, x)

    def load(self, table: NDArray) -> None:
        """Take the next passes, at most `max_passes`: [n, 4], see `starflow.runtime.ode.fixed_step`."""
        self._table[: len(table)] = table
        self.store("passes", self._table)
        self.store("pass", np.zeros(1, np.int64))

    def read(self) -> NDArray:
        """The state after the last finished step, [B, *data_shape] float32 (a copy)."""
        return self.fetch("x").copy()

    def velocity(self, x: NDArray, time: float) -> NDArray:
        """v(x, t): [B, *data_shape] float32 (a copy). An integration under way is lost."""
        self.load(np.array([[time, 0, 0, 0]]))
        self.store("point", x)
        self.advance(1)
        return self.fetch("velocity").copy()
