"""Fixed steps as a table of passes: what each run of a velocity graph does to the state.

In the methods with fixed steps each stage depends only on the stage before it. So besides x at its beginning a step needs the
point at which v is evaluated next, and the sum that becomes the next x. Each pass updates these three in the same way, with four
numbers that depend on solver and grid only:

    v = v(point, time)
    total = total + share * v
    x = total if last, else x
    point = x + ahead * v

A device gets the table of these numbers once and then needs no host between passes.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.ode.tableau import Tableau
from starflow.runtime.ode.time_grid import grid_fault
from starflow.runtime.plain.errors import UsageError

Velocity = Callable[[NDArray, float], NDArray]
COLUMNS = ("time", "ahead", "share", "last")


def pass_table(tableau: Tableau, times: Sequence[float]) -> NDArray[np.float64]:
    """The passes of a method over increasing times, or UsageError: [steps * stages, 4], columns as in `COLUMNS`."""
    fault = grid_fault(times)
    if fault:
        raise UsageError(fault)
    rows = []
    for start, end in pairwise(times):
        h = end - start
        for stage, (node, weight) in enumerate(zip(tableau.nodes, tableau.weights, strict=True)):
            last = stage == tableau.stages - 1
            ahead = 0.0 if last else h * tableau.matrix[stage + 1][stage]
            rows.append((start + node * h, ahead, h * weight, float(last)))
    return np.array(rows, np.float64)


def walk(velocity: Velocity, x: NDArray, table: NDArray) -> Iterator[NDArray]:
    """Walk through a table of passes on the host, in the type of `x`, and yield the state after every step.

    Args:
        velocity: v(x, t), with the shape of x.
        table: See `pass_table`.
    """
    point = total = x
    for time, ahead, share, last in table.tolist():
        v = velocity(point, time)
        total = total + share * v
        if last:
            x = total
            yield x
        point = x + ahead * v
