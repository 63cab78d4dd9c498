"""Exploring a flow block whose convergence is known: each pass divides the error by the rate of the guess."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from starflow.calibration.plans.candidates import explore, paying_passes
from starflow.calibration.plans.convergence import ChunkCurve, WindowTrial, envelope
from starflow.runtime.plans.calibrated_decode_plan import BlockCost, RunCost
from starflow.runtime.plans.decode_plan import Guess, Window


@dataclass
class Block:
    index: int = 4


@dataclass
class Known:
    """A probe of 32 tokens: `rates` by guess; a window errs by half its tolerance."""

    rates: dict[Guess, float]
    batch: int = 1
    count: int = 32
    energy: float = 8.0
    block: Block = field(default_factory=Block)
    asked: list[tuple[tuple[int, ...], Guess]] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)

    @property
    def tokens(self) -> list[np.ndarray]:
        return [np.ones((1, 2))]  # of squared size 2, while an image's is 8

    def chunks(self, widths: Sequence[int], guess: Guess, passes: dict[int, int]) -> list[ChunkCurve]:
        self.asked.append((tuple(widths), guess))
        return [
            ChunkCurve(start, width, errors, np.sqrt(errors))
            for width in widths
            for start in range(0, self.count, width)
            for errors in [np.array([[self.rates[guess] ** -(number + 1) for number in range(passes[width])]])]
        ]

    def window(self, window: Window) -> WindowTrial:
        self.windows.append(window)
        if window.advances is not None:
            return WindowTrial(window, (window.advances,), (0.5 / window.width) ** 2 * 1e-6)
        assert window.tolerance is not None
        passes = min(round(2 * self.count / window.width - np.log10(window.tolerance)), self.count)
        advances = np.diff(np.linspace(0, self.count, passes + 1).round().astype(int)).tolist()
        return WindowTrial(window, (tuple(advances),), (window.tolerance / 2) ** 2)


def cost(share: float, widths: Sequence[int] = (4, 8, 16, 32)) -> BlockCost:
    runs = tuple(RunCost(tokens=width, milliseconds=1 + share * width) for width in widths)
    return BlockCost(block=4, prefill_milliseconds=0.0, step_milliseconds=1.0, runs=runs)


def probe(**values: Any) -> Any:
    return Known({"noise": 2.0, "previous": 8.0, "zeros": 4.0}, **values)


def test_passes_that_pay() -> None:
    assert paying_passes(cost(0.1)) == {4: 2, 8: 4, 16: 6, 32: 7}
    assert paying_passes(cost(1.0)) == {}, "one pass takes longer than the steps"
    assert paying_passes(cost(0.75, (4,))) == {4: 1}, "as long will do"
    assert paying_passes(cost(0.0)) == {4: 4, 8: 8, 16: 16, 32: 32}


def test_the_guess_that_converges_fastest_is_taken_for_all_widths() -> None:
    known = probe()
    found = explore(known, cost(0.1), 1e-3, fixed=False)
    assert known.asked == [((16,), "noise"), ((16,), "previous"), ((16,), "zeros"), ((4, 8, 32), "previous")]
    assert (found.block, found.tokens, found.guess) == (4, 32, "previous")
    assert {guess: len(errors) for guess, errors in found.guesses.items()} == {"noise": 6, "previous": 6, "zeros": 6}
    assert found.guesses["zeros"] == pytest.approx([(2 * 4.0**-n) ** 0.5 for n in range(1, 7)])
    assert sorted({curve.tokens for curve in found.curves}) == [4, 8, 16, 32]
    assert all(curve.errors[0, 0] == 1 / 8 for curve in found.curves)


def test_guesses_are_compared_over_all_passes() -> None:
    """One that is ahead only at the end, where rounding decides, does not win."""

    class Late(Known):
        def chunks(self, widths: Sequence[int], guess: Guess, passes: dict[int, int]) -> list[ChunkCurve]:
            curves = super().chunks(widths, guess, passes)
            if guess == "zeros":
                for curve in curves:
                    curve.errors[:, -1] = 0.0
                    curve.errors[:, :-1] = 1.0
            return curves

    late: Any = Late({"noise": 2.0, "previous": 64.0, "zeros": 4.0})
    assert explore(late, cost(0.1), 1e-3, fixed=False).guess == "previous"


def test_the_width_to_compare_guesses_at_is_the_one_nearest_to_16() -> None:
    known = probe()
    explore(known, cost(0.1, (4, 12, 32)), 1e-3, fixed=True)
    assert known.asked[0][0] == (12,)


def test_where_no_pass_pays_nothing_is_run() -> None:
    known = probe()
    found = explore(known, cost(2.0), 1e-3, fixed=False)
    assert (known.asked, known.windows, found.curves, found.windows) == ([], [], (), ())
    assert (found.block, found.tokens, found.guess) == (4, 32, "noise")


def test_windows_of_widths_the_device_was_timed_at() -> None:
    known = probe(count=14)
    explore(known, cost(0.0, (4, 8)), 1e-30, fixed=False)
    assert {window.width for window in known.windows} == {4, 6, 8}
    assert all(window.tokens == 14 and window.guess == "previous" for window in known.windows)
    known = probe(count=5)
    explore(known, cost(0.0, (2, 8)), 1e-30, fixed=False)
    assert {window.width for window in known.windows} == {4, 5}, "none wider than the block"


def test_tolerances_scale_with_the_tokens_and_tighten_until_they_err_little() -> None:
    known = probe()
    budget = 0.5 / 16 * 1e-3 * 30 * 1.01  # a steady window of width 16 errs by a thirtieth of this, one of 12 by more
    found = explore(known, cost(0.0), budget, fixed=False)
    asked = {width: [w.tolerance for w in known.windows if w.width == width and w.tolerance] for width in (12, 16, 32)}
    # The root mean square of a token's channels is (8 / 2)^½ = 2.
    assert asked[16] == asked[32] == pytest.approx([2e-2])
    assert asked[12] == pytest.approx([2e-2, 6e-3, 2e-3, 6e-4])
    kinds = [(trial.window.width, trial.window.advances is None) for trial in found.windows]
    assert kinds[-2:] == [(32, True), (32, False)], "with a tolerance, then its envelope"


@pytest.mark.parametrize(("fixed", "batch"), [(True, 1), (False, 2)])
def test_windows_have_fixed_advances_on_devices_and_for_several_images(fixed: bool, batch: int) -> None:
    found = explore(probe(batch=batch), cost(0.0), 1e-3, fixed=fixed)
    assert found.windows and all(trial.window.tolerance is None for trial in found.windows)


def test_windows_that_take_longer_than_steps_are_not_run_again() -> None:
    """A pass takes as long as nine steps, so none of at least four passes pays for 32 tokens."""
    known = probe()
    runs = tuple(RunCost(tokens=width, milliseconds=9.0) for width in (2, 32))
    found = explore(known, cost(0.0).model_copy(update={"runs": runs}), 1e-30, fixed=False)
    assert all(window.advances is None and window.tolerance == pytest.approx(2e-2) for window in known.windows)
    assert [window.width for window in known.windows] == [4, 6, 8, 12, 16, 32] and found.windows == ()


def test_an_envelope_is_as_slow_as_the_slowest_batch() -> None:
    window = Window(tokens=6, width=4, tolerance=0.1)
    assert envelope(WindowTrial(window, ((1, 3, 2), (2, 1, 1, 2)), 0.0)).advances == (1, 2, 1, 2)
