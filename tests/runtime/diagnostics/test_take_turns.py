"""The take-turns timing harness under bench and calibration."""

import time

import pytest

from starflow.runtime.diagnostics.take_turns import Lap, spread, take_turns, take_turns_for

SHORT, LONG = 0.002, 0.02


def test_works_take_turns_after_a_round_that_does_not_count() -> None:
    calls: list[str] = []
    times = take_turns(
        [lambda _: calls.append("a"), lambda _: calls.append("b")],
        2,
        before_round=lambda: calls.append("|"),
        progress=lambda done, total: calls.append(f"{done}/{total}"),
    )
    assert calls == ["a", "b", "|", "a", "b", "1/2", "|", "a", "b", "2/2"]
    assert [len(each.whole) for each in times] == [2, 2]


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.0, 3, 3), (10.0, 5, 5), (10 * LONG, 3, 10)])
def test_short_work_takes_many_turns(seconds: float, least: int, most: int) -> None:
    calls: list[str] = []

    def work(_: Lap) -> None:
        calls.append("a")
        time.sleep(LONG)

    (times,) = take_turns_for([work], seconds, (3, 5 if seconds == 10.0 else 10))
    assert least <= len(times.whole) <= most
    assert len(calls) == len(times.whole) + 1, "the first one does not count"


def test_each_part_gets_the_time_up_to_its_lap_and_untimed_ones_get_none() -> None:
    def work(lap: Lap) -> None:
        time.sleep(LONG)
        lap(None)
        for _ in range(2):
            time.sleep(SHORT)
            lap("short")
        time.sleep(LONG)
        lap("long")

    (times,) = take_turns([work], 3, warm_up=False)
    assert set(times.parts) == {"short", "long"}
    assert min(times.parts["short"]) >= 2 * SHORT and min(times.parts["long"]) >= LONG
    for whole, short, long in zip(times.whole, times.parts["short"], times.parts["long"], strict=True):
        assert whole >= LONG + short + long  # what precedes lap(None) is in the whole alone
    assert times.milliseconds == pytest.approx(1000 * sorted(times.whole)[1])
    assert times.part_milliseconds["long"] == pytest.approx(1000 * sorted(times.parts["long"])[1])


@pytest.mark.parametrize(("seconds", "expected"), [([2.0], 0.0), ([1.0, 2.0, 3.0], 1.0), ([4.0] * 5, 0.0)])
def test_spread_is_the_interquartile_range_over_the_median(seconds: list[float], expected: float) -> None:
    assert spread(seconds) == expected
