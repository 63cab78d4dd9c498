"""The dynamic program against trying everything."""

import itertools
import math
import random

import pytest

from starflow.calibration.plans.search import UNITS, Edge, cheapest_path


def all_paths(count: int, edges: list[Edge[int]], start: int = 0) -> list[list[Edge[int]]]:
    if start == count:
        return [[]]
    return [[edge, *rest] for edge in edges if edge.start == start for rest in all_paths(count, edges, edge.end)]


def milliseconds(path: list[Edge[int]]) -> float:
    return math.fsum(edge.milliseconds for edge in path)


@pytest.mark.parametrize("seed", range(30))
def test_finds_what_trying_everything_finds(seed: int) -> None:
    draw = random.Random(seed)
    count, budget = 6, 1.0
    steps = [Edge(token, token + 1, 1.0 + draw.random(), 0.0, 0) for token in range(count)]
    # Errors are whole units of the budget, so that rounding them up changes nothing.
    chunks = [
        Edge(start, end, 3 * draw.random(), draw.randrange(UNITS) / UNITS, number)
        for number, (start, end) in enumerate(itertools.combinations(range(count + 1), 2))
        if draw.random() < 0.7
    ]
    edges = steps + chunks
    draw.shuffle(edges)
    path = cheapest_path(count, edges, budget)
    assert path is not None
    assert [edge.start for edge in path] == [0, *(edge.end for edge in path[:-1])] and path[-1].end == count
    assert sum(edge.error for edge in path) <= budget + 1e-9
    allowed = [p for p in all_paths(count, edges) if round(sum(edge.error for edge in p) * UNITS) <= UNITS]
    assert milliseconds(path) == pytest.approx(min(map(milliseconds, allowed)))


def test_rounding_never_overspends() -> None:
    edges = [Edge(token, token + 1, 1.0, 1.4 / UNITS, 0) for token in range(UNITS)]
    assert cheapest_path(UNITS, edges, 1.0) is None  # the sum is 1.4
    edges += [Edge(token, token + 1, 2.0, 0.0, 1) for token in range(UNITS)]
    path = cheapest_path(UNITS, edges, 1.0)
    assert path is not None
    assert 0.6 < sum(edge.error for edge in path) <= 1.0


def test_without_a_budget_only_exact_edges_are_left() -> None:
    exact, close = Edge(0, 2, 5.0, 0.0, "exact"), Edge(0, 2, 1.0, 1e-12, "close")
    path = cheapest_path(2, [exact, close], 0.0)
    assert path == [exact]
    assert cheapest_path(2, [close], 0.0) is None


def test_an_error_of_exactly_the_budget_is_within_it() -> None:
    whole, more = Edge(0, 1, 1.0, 0.5, "whole"), Edge(0, 1, 0.5, 0.5 * (1 + 1e-9), "more")
    assert cheapest_path(1, [whole, more], 0.5) == [whole]
    halves = [Edge(token, token + 1, 1.0, 0.25, token) for token in range(2)]
    assert cheapest_path(2, halves, 0.5) == halves
