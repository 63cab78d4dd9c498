"""Choosing until the budget is used well, where measured errors are a known multiple of the predicted ones."""

import itertools

import numpy as np
import pytest

from starflow.calibration.weights.budget_choice import choose_within
from starflow.calibration.weights.precision_choice import Choice, Option, predicted_error, total_cost


def random_options(seed: int, count: int = 7) -> dict[str, list[Option]]:
    draw = np.random.default_rng(seed)
    options = {}
    for index in range(count):
        size, error = draw.uniform(1, 10), draw.lognormal(-6, 1)
        kinds = Option("int8", size, error), Option("int8-wide", 1.75 * size, 0.2 * error)
        options[str(index)] = [Option("kept", 4 * size, 0.0), *kinds]
    return options


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0, 2.5, 8.0])
def test_comes_close_to_the_best_of_all_choices_within_the_budget(seed: int, factor: float) -> None:
    options, budget = random_options(seed), 1e-2
    tried = choose_within(options, budget, lambda choice: factor * predicted_error(choice))
    taken = tried[-1]
    assert taken.error <= budget and len({str(each.choice) for each in tried}) == len(tried)
    every = (dict(zip(options, some, strict=True)) for some in itertools.product(*options.values()))
    best = min(total_cost(each) for each in every if factor * predicted_error(each) <= budget)
    assert best <= total_cost(taken.choice) <= 1.2 * best


def even(count: int = 100) -> dict[str, list[Option]]:
    """Every matrix costs 2, or 1 with an error just below 0.1: k of them are predicted to err by almost 0.1 k^½."""
    return {str(index): [Option("kept", 2.0, 0.0), Option("int8", 1.0, 0.0999)] for index in range(count)}


def changed(choice: Choice) -> int:
    return sum(option.name == "int8" for option in choice.values())


def errors(factor: float, budget: float, count: int = 100) -> list[int]:
    """How many matrices each choice changes, the one taken last."""
    tried = choose_within(even(count), budget, lambda choice: factor * predicted_error(choice))
    return [changed(each.choice) for each in tried]


def test_an_error_close_to_the_budget_ends_it() -> None:
    assert errors(1.0, 0.55) == [30]  # 0.1 * 30^½ is 99.6 % of it
    assert errors(0.9, 0.5) == [25], "90 % is close"
    assert errors(0.81, 0.5) == [25], "so is 81 %"
    assert len(errors(0.79, 0.5)) > 1


def test_everything_in_its_smallest_treatment_ends_it() -> None:
    assert errors(0.01, 2.0) == [100]


def test_too_small_a_prediction_is_corrected() -> None:
    # Measured twice the prediction: the next aim is 0.95 / 2 of the first.
    assert errors(2.0, 0.5) == [25, 5]


def test_too_large_a_prediction_is_corrected_by_at_most_four() -> None:
    # Measured half the prediction: twice 0.95 as much is aimed for.
    assert errors(0.5, 0.3) == [9, 32]
    assert errors(0.01, 0.1)[:3] == [1, 14, 100]


def test_between_a_good_aim_and_a_bad_one_their_ratio_is_halved() -> None:
    """A leap: choices of more than 16 matrices err by ten times as much."""
    tried: list[int] = []

    def measure(choice: Choice) -> float:
        tried.append(changed(choice))
        return predicted_error(choice) * (0.3 if changed(choice) <= 16 else 10)

    taken = choose_within(even(), 0.2, measure)[-1]
    # Aims: 0.2; 0.2 * 0.95 / 0.3 = 0.63 is bad; then geometric means with the best that was good.
    assert tried[:4] == [4, 40, 12, 22]
    assert changed(taken.choice) == max(count for count in tried if count <= 16)


def test_a_first_choice_that_breaks_down_is_left_behind() -> None:
    tried: list[int] = []

    def measure(choice: Choice) -> float:
        tried.append(changed(choice))
        return predicted_error(choice) if changed(choice) < 10 else np.inf

    taken = choose_within(even(), 0.9, measure)[-1]
    # A quarter times 0.95 of 0.9 is 0.21; 0.2 is a poor use of the budget; then means of a good and a bad aim.
    assert tried[:3] == [81, 4, 19]
    assert changed(taken.choice) == max(count for count in tried if count < 10)


def test_none_within_the_budget() -> None:
    tried: list[int] = []

    def measure(choice: Choice) -> float:
        tried.append(changed(choice))
        return 1.0

    assert choose_within(even(200), 0.9, measure) == []
    assert tried == sorted(tried, reverse=True) and 3 <= len(tried) <= 12
    assert choose_within(even(), 0.05, measure) == [], "not a single matrix can be changed"


def test_the_rounds_are_bounded() -> None:
    """Errors that never come close: six rounds where one is good, twelve where none is."""
    options = {str(i): [Option("kept", 2.0, 0.0), Option("int8", 1.0, 1.03**-i)] for i in range(300)}
    count = itertools.count()

    def wandering(choice: Choice) -> float:
        return 0.5 if next(count) % 2 == 0 else 2.0

    assert len(choose_within(options, 1.0, wandering)) == 6
    calls: list[Choice] = []

    def hopeless(choice: Choice) -> float:
        calls.append(choice)
        return 1.04

    assert choose_within(options, 1.0, hopeless) == [] and len(calls) == 12


def test_rejected_choices_come_first_in_their_order() -> None:
    tried = choose_within(even(), 0.5, lambda choice: 2.0 * predicted_error(choice))
    assert [each.error > 0.5 for each in tried] == [True, False]


def test_a_later_choice_that_costs_more_is_not_taken() -> None:
    seen: list[int] = []

    def measure(choice: Choice) -> float:
        seen.append(changed(choice))
        return {1: 0.1, 2: 2.0}.get(len(seen), 0.1)

    taken = choose_within(even(), 0.5, measure)[-1]
    assert changed(taken.choice) == max(count for number, count in enumerate(seen) if number != 1)
