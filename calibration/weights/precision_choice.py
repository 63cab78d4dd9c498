"""Which matrices get how many bits: the least cost under a bound on the error.

Rounding errors of different matrices are independent, so their squares add up, and the choice is a knapsack: of every
matrix one option, sum of costs least, sum of squared errors at most the bound's square.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BISECTIONS = 60


@dataclass(frozen=True)
class Option:
    """One way to store a matrix."""

    name: str  # of the treatment
    cost: float  # what a step pays for it
    error: float  # what it alone does to the samples, relative


Choice = dict[str, Option]


def choose(options: Mapping[str, Sequence[Option]], budget: float) -> Choice:
    """One option for every matrix.

    A price on squared error is searched for under which every matrix's own best option keeps the budget (Lagrange); what is
    left of the budget then goes to single matrices, best bargain first.

    Args:
        options: By matrix; one of each must have error 0.
        budget: Bound on the error of all together, relative.
    """
    low, high = 0.0, 1.0
    while predicted_error(_at_price(options, high)) > budget:
        high *= 4.0
    for _ in range(BISECTIONS):
        price = (low + high) / 2
        low, high = (price, high) if predicted_error(_at_price(options, price)) > budget else (low, price)
    choice = _at_price(options, high)
    while (bargain := _best_bargain(options, choice, budget)) is not None:
        name, option = bargain
        choice[name] = option
    return choice


def predicted_error(choice: Mapping[str, Option]) -> float:
    """Of the samples, relative."""
    return sum(option.error**2 for option in choice.values()) ** 0.5


def total_cost(choice: Mapping[str, Option]) -> float:
    """Of a step, over all matrices."""
    return sum(option.cost for option in choice.values())


def _at_price(options: Mapping[str, Sequence[Option]], price: float) -> Choice:
    scale = max((option.cost for some in options.values() for option in some), default=1.0)
    unit = scale / max(1e-30, *(option.error**2 for some in options.values() for option in some), 1e-30)
    return {
        name: min(some, key=lambda option: (option.cost + price * unit * option.error**2, option.error))
        for name, some in options.items()
    }


def _best_bargain(options: Mapping[str, Sequence[Option]], choice: Choice, budget: float) -> tuple[str, Option] | None:
    """The change that saves most for the error it adds and still keeps the budget."""
    room = budget**2 - predicted_error(choice) ** 2
    best, most = None, 0.0
    for name, some in options.items():
        now = choice[name]
        for option in some:
            saved, added = now.cost - option.cost, option.error**2 - now.error**2
            if saved > 0 and added <= room and saved / max(added, 1e-30) > most:
                best, most = (name, option), saved / max(added, 1e-30)
    return best
