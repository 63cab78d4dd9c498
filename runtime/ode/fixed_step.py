"""Fixed steps as a list of passes: what a velocity graph does to its state in each of its runs.

Every stage of the methods with fixed steps depends on the stage before it alone. So a step needs, beside x at its beginning, the
point where v is taken next and the sum that becomes the next x; and each pass does the same to these three, with four numbers
that depend on solver and grid only:

    v = v(point, time)
    total = total + share * v
    x = total if last, else x
    point = x + ahead * v

The numbers of all passes are a table, which a device gets once and walks through by itself.
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
    """The passes of a method over a grid: [steps * stages, 4], columns as in `COLUMNS`.

    Raises:
        UsageError: the times do not increase.
    """
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
    """Walk through a table of passes on the host, in the type of `x`: the state after every step, whatever it is.

    Args:
        velocity: v(x, t), of the shape of x.
        x: Where the integration starts.
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
