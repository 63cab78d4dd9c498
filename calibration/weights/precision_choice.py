"""Which matrices get how many bits: the least cost under a bound on the error.

Rounding errors of different matrices are independent, so their squares add up, and the choice is a knapsack: of every
matrix one option, sum of costs least, sum of squared errors at most the bound's square.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One way to store a matrix."""

    name: str  # of the treatment
    cost: float  # what a step pays for it
    error: float  # what it alone does to the samples, relative


Choice = dict[str, Option]


def choose(options: Mapping[str, Sequence[Option]], budget: float) -> Choice:
    """One option for every matrix.

    From the most exact options on, the change that adds least squared error for the cost it saves is made, again and again,
    while one keeps the budget. As long as every change fits, no choice of the same error costs less (Lagrange: each matrix
    has the option that is best at one common price of error).

    Args:
        options: By matrix; one of each must have error 0.
        budget: Bound on the error of all together, relative.
    """
    choice = {name: min(some, key=lambda option: (option.error, option.cost)) for name, some in options.items()}
    while bargains := list(_bargains(options, choice, budget)):
        _, name, option = min(bargains, key=lambda bargain: bargain[0])
        choice[name] = option
    return choice


def predicted_error(choice: Mapping[str, Option]) -> float:
    """Of the samples, relative."""
    return sum(option.error**2 for option in choice.values()) ** 0.5


def total_cost(choice: Mapping[str, Option]) -> float:
    """Of a step, over all matrices."""
    return sum(option.cost for option in choice.values())


def _bargains(
    options: Mapping[str, Sequence[Option]], choice: Choice, budget: float
) -> Iterator[tuple[float, str, Option]]:
    """Every change that saves cost and keeps the budget: the squared error it adds for the cost it saves, matrix, option."""
    room = budget**2 - predicted_error(choice) ** 2
    for name, some in options.items():
        now = choice[name]
        for option in some:
            saved, added = now.cost - option.cost, option.error**2 - now.error**2
            if saved > 0 and added <= room:
                yield added / saved, name, option
