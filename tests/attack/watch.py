"""What a campaign says while it runs: a line when something begins and when it ends, and a bar on a terminal."""

import sys
import time
from contextlib import ExitStack
from typing import Literal, Self

from starflow.runtime.plain.progress import progress_bar
from tests.attack.tally import ALLOWED

MOST_TOLD = 600  # characters of a fault


class Watch:
    """Reports a part on standard error.

    It says so when it is made. The bar runs while the context lasts, and has a thread: fork before.
    """

    def __init__(self, what: str, total: int, unit: Literal["cases", "scenes"]) -> None:
        """Begin; `total` counts cases, or scenes, each of which ends with a call of `done`."""
        self._what, self._total, self._unit = what, total, unit
        self._cases, self._faults, self._done = 0, 0, 0
        self._start = time.monotonic()
        self._stack = ExitStack()
        say(f"{what}: {total:,} {unit if total != 1 else unit[:-1]}")

    def __enter__(self) -> Self:
        self._report = self._stack.enter_context(progress_bar(self._what))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        say(ended(self._what, self._cases, self._faults, time.monotonic() - self._start))

    def case(self, part: str, case: str, outcome: str, told: str) -> None:
        """Count a case; a fault is shown."""
        self._cases += 1
        if self._unit == "cases":
            self.done()
        if outcome not in ALLOWED:
            self._faults += 1
            say(f"{part}:{case} {outcome}: {told}")

    def done(self, more: int = 1) -> None:
        """So many more of `total` are done."""
        self._done += more
        self._report(self._done, self._total)


def ended(what: str, cases: int, faults: int, seconds: float) -> str:
    """A line about something that has ended."""
    return f"{what}: {cases:,} cases in {seconds:.0f} s, {f'{faults:,} faults' if faults else 'no fault'}"


def say(line: str) -> None:
    """Print a line on standard error, whatever it quotes."""
    print(line[:MOST_TOLD].encode("unicode_escape").decode(), file=sys.stderr, flush=True)
