"""The smallest choice of treatments whose samples were measured to stay within a budget.

Predictions are off by a common factor: errors do not only grow, and a few images may carry most of them. So it is the predicted
error aimed for that is corrected, and bisected in ratio once one that keeps the budget and one that does not are known.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from starflow.calibration.weights.precision_choice import Choice, Option, choose, total_cost

ROUNDS = 6  # of choosing and measuring
MOST_ROUNDS = 12  # where no choice has kept the budget yet
CLOSE = 0.8  # share of the budget from which on an error is good enough to stop


class Tried(NamedTuple):
    """A choice, and the relative error of whole samples that it was measured to have."""

    choice: Choice
    error: float


def choose_within(
    options: Mapping[str, Sequence[Option]], budget: float, measure: Callable[[Choice], float]
) -> list[Tried]:
    """Choose, measure, and choose again with what was learnt, until the budget is used well.

    Args:
        options: By matrix: first the option that changes nothing, then any others.
        budget: Largest error that is allowed.
        measure: Returns the error of a choice.

    Returns:
        Every choice that was measured; the last one is taken: the least cost within the budget. Empty where none is.
    """
    smallest = {name: min(some, key=lambda option: option.cost) for name, some in options.items()}
    aim, good, bad = budget, 0.0, np.inf
    best: Tried | None = None
    tried: list[Tried] = []
    while len(tried) < ROUNDS or (best is None and len(tried) < MOST_ROUNDS):
        choice = choose(options, aim)
        changes_nothing = all(choice[name] == some[0] for name, some in options.items())
        if changes_nothing or any(choice == each.choice for each in tried):
            break
        error = measure(choice)
        tried.append(Tried(choice, error))
        if error <= budget:
            if best is None or total_cost(choice) < total_cost(best.choice):
                best = tried[-1]
            good = max(good, aim)
            if error >= CLOSE * budget or choice == smallest:
                break
        else:
            bad = min(bad, aim)
        correction = budget / max(error, budget / 4) if np.isfinite(error) else 0.25
        aim = (good * bad) ** 0.5 if 0 < good < bad < np.inf else aim * correction * 0.95
    return [] if best is None else [*(each for each in tried if each is not best), best]
