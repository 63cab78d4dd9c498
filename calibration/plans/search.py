"""The cheapest way through a row of tokens whose errors stay within a budget, by dynamic programming."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

What = TypeVar("What")

UNITS = 1000  # the budget is spent in thousandths; errors are rounded up


@dataclass(frozen=True)
class Edge(Generic[What]):
    """One way to get from token `start` to token `end`."""

    # Tokens, counted over everything that is planned.
    start: int
    end: int
    milliseconds: float
    error: float  # its share of the squared error
    what: What


def cheapest_path(count: int, edges: Sequence[Edge[What]], budget: float) -> list[Edge[What]] | None:
    """The edges from token 0 to `count` of least time whose errors add up to at most `budget`; None if there are none.

    best[t, u] is the least time to get to token t having spent at most u units of the budget.
    """
    best = np.full((count + 1, UNITS + 1), np.inf)
    chosen = np.full((count + 1, UNITS + 1), -1, np.int32)
    best[0] = 0.0
    units = [_units(edge.error, budget) for edge in edges]
    for index in sorted(range(len(edges)), key=lambda index: edges[index].end):
        edge, spent = edges[index], units[index]
        if spent > UNITS:
            continue
        time = best[edge.start, : UNITS + 1 - spent] + edge.milliseconds
        target = best[edge.end, spent:]
        better = time < target
        target[better] = time[better]
        chosen[edge.end, spent:][better] = index
    if not np.isfinite(best[count, UNITS]):
        return None
    path: list[Edge[What]] = []
    token, left = count, UNITS
    while token:
        index = int(chosen[token, left])
        path.append(edges[index])
        token, left = edges[index].start, left - units[index]
    return path[::-1]


def _units(error: float, budget: float) -> int:
    share = error / budget * UNITS if budget > 0 else (0.0 if error == 0 else np.inf)
    return int(np.ceil(share)) if share <= UNITS else UNITS + 1
