"""Errors that were put in by hand come out again, with their place."""

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.export.verification.agreement import Measurement, compare
from starflow.export.verification.subject import Part
from starflow.export.verification.tolerances import Tolerance

BLOCK = Part("flow block 3", 3, prefix=5, first_token=1)


@pytest.fixture
def expected() -> NDArray:
    tokens = np.random.default_rng(0).standard_normal((4, 8, 6), np.float32)
    tokens[2, 4, 1] = 20.0
    return tokens


def measure(expected: NDArray, found: NDArray, tolerance: Tolerance) -> Measurement:
    (measured,) = compare("a route", "block", {3: BLOCK}, {3: expected}, {3: found}, tolerance)
    return measured


def test_an_error_is_found_where_it_is(expected: NDArray) -> None:
    found = expected.copy()
    found[2, 4, 1] += 0.5
    found[1, 6, 0] += 0.25
    measured = measure(expected, found, Tolerance("largest", 0.3))
    assert (measured.token, measured.position, measured.image) == (4, 5 + 4 - 1, 2)
    assert measured.place == "block 3, token 4"
    assert measured.largest == 0.5
    # On a value of 20, 0.5 is 0.025 of it; the other error is the larger one in relation to max(1, |value|).
    assert measured.scaled == pytest.approx(0.25 / max(1, abs(expected[1, 6, 0])))
    assert measured.relative == pytest.approx(np.sqrt(0.25 + 0.0625) / np.linalg.norm(expected))
    assert measured.passed and measured.finding is None and measured.load < 1


@pytest.mark.parametrize(("factor", "passed"), [(0.99, True), (1.01, False)])
def test_every_element_keeps_the_scaled_bound(expected: NDArray, factor: float, passed: bool) -> None:
    for place in ((2, 4, 1), (0, 0, 0)):  # a value of 20, and one below 1
        found = expected.astype(np.float64)
        found[place] += factor * 1e-3 * max(1, abs(expected[place]))
        measured = measure(expected, found, Tolerance("largest", 1e-3))
        assert measured.passed is passed
        assert (measured.load <= 1) is passed


@pytest.mark.parametrize(("factor", "passed"), [(0.99, True), (1.01, False)])
def test_the_whole_keeps_the_relative_bound(expected: NDArray, factor: float, passed: bool) -> None:
    direction = np.random.default_rng(1).standard_normal(expected.shape)
    direction *= np.linalg.norm(expected) / np.linalg.norm(direction)
    measured = measure(expected, expected + factor * 2e-2 * direction, Tolerance("relative", 2e-2))
    assert measured.passed is passed
    assert (measured.load <= 1) is passed


def test_errors_per_token_make_up_the_relative_error(expected: NDArray) -> None:
    found = expected * 1.001
    found[:, 3] += 0.1
    measured = measure(expected, found, Tolerance("relative", 1.0))
    per_token = np.array(measured.per_token, float)
    assert per_token.shape == (8,) and per_token.argmax() == 3
    assert np.sqrt(np.square(per_token).mean()) == pytest.approx(measured.relative)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("measure_name", ["largest", "relative"])
def test_what_is_not_finite_fails_whatever_the_tolerance(expected: NDArray, value: float, measure_name: str) -> None:
    found = expected.copy()
    found[3, 5:, 2] = value
    measured = measure(expected, found, Tolerance(measure_name, 1e9))  # type: ignore[arg-type]
    assert not measured.passed and measured.load == float("inf")
    assert measured.finding == "it gave NaN or infinity in flow block 3 at position 9 (token 5, image 3)"
    assert measured.largest is measured.scaled is measured.relative is None
    assert [error is None for error in measured.per_token] == [token >= 5 for token in range(8)]


def test_the_reference_is_named_where_it_is_at_fault(expected: NDArray) -> None:
    found = expected.copy()
    expected[0, 0, 0] = np.nan
    measured = measure(expected, found, Tolerance("relative", 1.0))
    assert not measured.passed and measured.finding is not None and measured.finding.startswith("the reference gave")


def test_infinities_that_agree_are_wrong_all_the_same(expected: NDArray) -> None:
    expected[0, 0, 0] = np.inf
    assert not measure(expected, expected.copy(), Tolerance("largest", 1.0)).passed
