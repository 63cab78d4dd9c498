"""The knapsack, against trying everything."""

import itertools

import numpy as np
import pytest

from starflow.calibration.weights.precision_choice import Option, choose, predicted_error, total_cost


def random_options(seed: int, count: int) -> dict[str, list[Option]]:
    generator = np.random.default_rng(seed)
    options = {}
    for index in range(count):
        size = generator.uniform(1, 10)
        error = generator.lognormal(-6, 1)
        options[str(index)] = [
            Option("kept", 4 * size, 0.0),
            Option("int8-wide", 1.75 * size, 0.2 * error),
            Option("int8", size, error),
        ]
    return options


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [1e-3, 4e-3, 1e-2])
def test_close_to_the_best_of_all_choices_and_never_above_the_budget(seed: int, budget: float) -> None:
    options = random_options(seed, 7)
    choice = choose(options, budget)
    assert predicted_error(choice) <= budget
    every = (dict(zip(options, some, strict=True)) for some in itertools.product(*options.values()))
    best = min(total_cost(each) for each in every if predicted_error(each) <= budget)
    assert best <= total_cost(choice) <= 1.1 * best


def test_extremes() -> None:
    options = random_options(1, 20)
    assert {option.name for option in choose(options, 1e-12).values()} == {"kept"}
    assert {option.name for option in choose(options, 1e3).values()} == {"int8"}
    broken = options | {"x": [Option("kept", 4, 0.0), Option("int8", 1, float("inf"))]}
    assert choose(broken, 1e-2)["x"].name == "kept"
