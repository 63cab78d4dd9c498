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


def hand_made() -> dict[str, list[Option]]:
    """Two matrices: the large one saves 30 for an error of 3, the small one 6 for an error of 1."""
    return {
        "large": [Option("kept", 40.0, 0.0), Option("int8", 10.0, 3.0)],
        "small": [Option("kept", 8.0, 0.0), Option("int8", 2.0, 1.0)],
    }


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (0.99, {"large": "kept", "small": "kept"}),
        (1.0, {"large": "kept", "small": "int8"}),  # 1^2 just fits
        (2.99, {"large": "kept", "small": "int8"}),
        (
            3.15,
            {"large": "kept", "small": "int8"},
        ),  # the better bargain comes first; the large one alone would save more
        (3.17, {"large": "int8", "small": "int8"}),
    ],
)
def test_choices_worked_out_by_hand(budget: float, expected: dict[str, str]) -> None:
    assert {name: option.name for name, option in choose(hand_made(), budget).items()} == expected


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_units_of_cost_and_error_do_not_matter(scale: float) -> None:
    options = random_options(3, 12)
    costly = {n: [Option(o.name, scale * o.cost, o.error) for o in some] for n, some in options.items()}
    coarse = {n: [Option(o.name, o.cost, 1e-3 * scale * o.error) for o in some] for n, some in options.items()}
    names = {name: option.name for name, option in choose(options, 4e-3).items()}
    assert {name: option.name for name, option in choose(costly, 4e-3).items()} == names
    assert {name: option.name for name, option in choose(coarse, 4e-6 * scale).items()} == names


@pytest.mark.parametrize("seed", range(40))
def test_no_single_change_that_saves_is_left(seed: int) -> None:
    options = random_options(seed, 9)
    budget = 10 ** np.random.default_rng(seed).uniform(-3, -1.7)
    choice = choose(options, budget)
    for name, some in options.items():
        for option in some:
            assert option.cost >= choice[name].cost or predicted_error({**choice, name: option}) > budget


def test_near_the_best_on_average() -> None:
    """The gap that a relaxed knapsack leaves is that of a single matrix, so among more matrices it is smaller."""
    gaps = []
    for seed in range(60):
        options = random_options(100 + seed, 6)
        budget = 10 ** np.random.default_rng(seed).uniform(-2.9, -1.9)
        every = (dict(zip(options, some, strict=True)) for some in itertools.product(*options.values()))
        best = min(total_cost(each) for each in every if predicted_error(each) <= budget)
        gaps.append(total_cost(choose(options, budget)) / best - 1)
    assert min(gaps) >= -1e-12
    assert np.mean(gaps) < 0.012


@pytest.mark.parametrize("seed", range(8))
def test_the_best_of_all_where_one_price_of_error_explains_it(seed: int) -> None:
    """Whatever is best at a price on squared error is the best of all choices with no more error (Everett, 1963)."""
    options = random_options(200 + seed, 6)
    for price in 10 ** np.random.default_rng(seed).uniform(4, 7, 3):
        explained = {n: min(some, key=lambda o: o.cost + price * o.error**2) for n, some in options.items()}
        choice = choose(options, predicted_error(explained) * (1 + 1e-9))
        assert choice == explained
