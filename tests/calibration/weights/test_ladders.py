"""Which products a matrix may get by their measured times, and what they cost."""

import pytest

from starflow.calibration.weights.ladders import fixed_ladders, ladders_of, measure_ladders
from starflow.calibration.weights.product_times import measure_products, relative_times
from starflow.calibration.weights.treatment import CPU_PRODUCTS, Treatment

ORDERED = tuple(product[rung] for rung in (0, 1) for product in (CPU_PRODUCTS["row"], CPU_PRODUCTS["block"]))
NAMES = [each.name for each in ORDERED]
SHAPE = (128, 256)


def named(ladder: tuple[Treatment, ...]) -> list[str]:
    return [each.name for each in ladder]


@pytest.mark.parametrize(
    ("times", "left"),
    [
        ((0.4, 0.5, 0.6, 0.7), NAMES),
        ((0.5, 0.4, 0.6, 0.7), ["int8", "int8-row-wide", "int8-wide"]),
        ((0.4, 2.0, 0.7, 3.0), ["int8-row", "int8-row-wide"]),
        ((0.5, 0.9, 1.1, 2.1), ["int8-row", "int8"]),
        ((0.4, 0.9, 0.8, 0.7), ["int8-row", "int8-wide"]),
        ((0.9, 0.9, 0.9, 0.9), ["int8-wide"]),
    ],
)
def test_what_is_slower_and_less_exact_is_left_out(times: tuple[float, ...], left: list[str]) -> None:
    ladders = ladders_of(ORDERED, {SHAPE: dict(zip(NAMES, times, strict=True))})
    assert named(ladders.of(*SHAPE)) == left
    costs = [ladders.cost(each, SHAPE, 1000, 4000) for each in ladders.of(*SHAPE)]
    assert costs == sorted(costs) and costs[0] == 4000 * min(times)


def test_a_product_that_is_slower_than_float32_costs_more_than_it() -> None:
    ladders = ladders_of(ORDERED, {SHAPE: dict.fromkeys(NAMES, 1.5), (256, 128): dict.fromkeys(NAMES, 0.5)})
    (slow,), (fast,) = ladders.of(*SHAPE), ladders.of(256, 128)
    assert ladders.cost(slow, SHAPE, 1000, 4000) > 4000 > ladders.cost(fast, (256, 128), 1000, 4000)


def test_bytes_decide_where_nothing_is_faster() -> None:
    ladders = ladders_of(ORDERED, {SHAPE: dict.fromkeys(NAMES, 1.0)})
    assert ladders == fixed_ladders("cpu", "int8")
    assert named(ladders.of(*SHAPE)) == ["int8", "int8-wide"]
    assert [ladders.cost(each, SHAPE, 1000, 4000) for each in ladders.of(*SHAPE)] == [1000, 1750]


def test_the_less_slow_product_saves_the_bytes() -> None:
    slow = dict(zip(NAMES, (1.2, 2.0, 2.1, 4.0), strict=True))
    assert ladders_of(ORDERED, {SHAPE: slow}) == fixed_ladders("cpu", "int8", "row")
    assert ladders_of(ORDERED, {SHAPE: slow | {"int8": 1.1}}) == fixed_ladders("cpu", "int8", "block")


def test_widths_that_no_block_divides_and_small_matrices() -> None:
    times = {(1000, 20): dict.fromkeys(("int8-row", "int8-row-wide"), 0.5) | {"int8-row-wide": 0.6}}
    ladders = ladders_of(ORDERED, times)
    assert named(ladders.of(1000, 20)) == ["int8-row", "int8-row-wide"]
    assert ladders.of(8, 128) == ()
    assert fixed_ladders("cpu", "int8").of(1000, 20) == ()
    assert named(fixed_ladders("cpu", "int8", "row").of(1000, 20)) == ["int8-row", "int8-row-wide"]


def test_other_types_and_lowerings_have_one_ladder() -> None:
    assert named(fixed_ladders("cpu", "int4", "row").treatments) == ["int4", "int8", "int8-wide"]
    assert named(fixed_ladders("portable", "int8").treatments) == ["int8"]


def test_times_are_measured_at_every_number_of_rows() -> None:
    times = measure_products((160, 128), 3, [2, 8], ORDERED, threads=1)
    assert list(times) == ["fp32", *NAMES]
    assert all(list(taken) == [2, 8] and min(taken.values()) > 0 for taken in times.values())
    assert set(measure_products((1000, 20), 1, [2], ORDERED, threads=1)) == {"fp32", "int8-row", "int8-row-wide"}


def test_the_relative_time_is_a_geometric_mean() -> None:
    assert relative_times({"fp32": {2: 1.0, 8: 4.0}, "int8": {2: 0.5, 8: 8.0}}) == {"int8": pytest.approx(1.0)}


def test_large_products_of_few_rows_are_faster_in_8_bits() -> None:
    """A matrix that no cache holds: float32 reads four times the bytes."""
    ladders = measure_ladders({(2048, 2048): 4}, [1, 4], threads=1)
    assert ladders.times[2048, 2048]["int8-row"] < 1 and ladders.of(2048, 2048)
    assert measure_ladders({}, [1], threads=1) == fixed_ladders("cpu", "int8")
