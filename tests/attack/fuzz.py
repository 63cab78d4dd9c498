"""Damage artifacts at random, try each, and say what came of it.

A case is a function of its part's name, the seed and its number alone, so `python -m tests.attack --only bundles:1234` shows
it again.
"""

import contextlib
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.random import Generator
from pydantic import BaseModel

from tests.attack.forked import Ended, attempt, freeze, import_ahead
from tests.attack.tally import ALLOWED

MEMORY_FACTOR = 2  # a damaged artifact may take so much of the honest one's memory
LONGEST_MESSAGE = 2100  # characters
CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]")  # what a terminal would obey


@dataclass(frozen=True)
class Damage:
    """A damaged artifact, ready to be tried.

    Attributes:
        note: What was done.
        attempt: Tries it, in a child; returns a digest of what came out.
        honest: Name of the attempt on the whole artifact that it is compared with.
        weights: The damage is in weights alone and no digest was asked for, so another result is no fault.
        another: It is a whole artifact of its own, or the input of another request, so another result is right.
    """

    note: str
    attempt: Callable[[], str]
    honest: str
    weights: bool = False
    another: bool = False


class Part(Protocol):
    """One kind of artifact."""

    name: str

    def honest(self) -> dict[str, Callable[[], str]]:
        """Attempts on whole artifacts, by name."""

    def damage(self, draw: Generator, folder: Path) -> Damage:
        """Write a damaged artifact into an empty folder."""

    def left_over(self, folder: Path) -> list[str]:
        """What stands in the folder after the attempt that should not."""


class Fuzzer:
    """Runs the cases of one part."""

    def __init__(self, part: Part, scratch: Path, seed: int) -> None:
        self.part, self.seed, self._scratch = part, seed, scratch
        self._honest: dict[str, Ended] = {}
        attempts = part.honest()
        for do in attempts.values():
            import_ahead(do)
        _build_validators(BaseModel)
        freeze()
        for name, do in attempts.items():
            ended = attempt(do, 60)
            if ended.how != "done":
                raise RuntimeError(f"{part.name}, {name}: the whole artifact fails: {ended.told}")
            if attempt(do, 60).told != ended.told:
                raise RuntimeError(f"{part.name}, {name}: two attempts on the whole artifact differ")
            self._honest[name] = ended

    def run(self, numbers: Sequence[int], stop: Callable[[], bool]) -> Iterator[tuple[int, str, str]]:
        """Case, outcome and what was told, for each number until `stop()`."""
        for number in numbers:
            if stop():
                return
            yield (number, *self.case(number))

    def case(self, number: int) -> tuple[str, str]:
        """Outcome of one case, and a line about it."""
        draw = np.random.default_rng([zlib.crc32(self.part.name.encode()), self.seed, number])
        folder = self._scratch / f"{self.part.name}-{os.getpid()}"
        _remove(folder)
        folder.mkdir(parents=True)
        damage = self.part.damage(draw, folder)
        ended = attempt(damage.attempt)
        outcome, told = self._judge(damage, ended)
        if outcome in ALLOWED and (left := self.part.left_over(folder)):
            outcome, told = "left over", ", ".join(left)
        _remove(folder)
        return outcome, f"{damage.honest}; {damage.note}: {told}"

    def _judge(self, damage: Damage, ended: Ended) -> tuple[str, str]:
        honest = self._honest[damage.honest]
        if ended.how == "raised":
            badly_said = "tests.attack.command.CommandError" in ended.told
            return ("message" if badly_said else "traceback"), _end_of(ended.told)
        if ended.how in ("abort", "hang", "memory"):
            return ended.how, _end_of(ended.told)
        if ended.peak > MEMORY_FACTOR * honest.peak:
            return "memory", f"{ended.peak / 2**20:.0f} MiB, whole {honest.peak / 2**20:.0f} MiB"
        if CONTROL.search(ended.printed):
            return "message", f"control characters reach the terminal: {ended.printed[:300]!r}"
        if ended.how == "refused" and ended.printed.count(b"\n") > 1:
            return "message", f"more than one line: {ended.printed[:300]!r}"
        if ended.how == "refused":
            readable = ended.told.isprintable() and 0 < len(ended.told) <= LONGEST_MESSAGE
            return ("refused", ended.told) if readable else ("message", f"{ended.told[:300]!r}")
        if ended.told == honest.told:
            return "same", ""
        if damage.another:
            return "another model", ""
        return ("weights differ" if damage.weights else "silent"), ended.told[:100]


def _build_validators(kind: type[BaseModel]) -> None:
    """Build the validators of our file formats here: they are built when they are first used, which would be in every child."""
    for each in kind.__subclasses__():
        if each.__module__.startswith("starflow."):
            each.model_rebuild()
        _build_validators(each)


def _end_of(trace: str) -> str:
    """The error of a traceback, and where it was raised in our code."""
    lines = trace.strip().splitlines()
    places = [line.strip() for line in lines if line.lstrip().startswith("File ")]
    own = [line for line in places if re.search(r"/(runtime|export|training|calibration)/", line)]
    where = (
        re.sub(r'^File ".*?((?:runtime|export|training|calibration)/[^"]*)", line (\d+).*', r"\1:\2", own[-1])
        if own
        else ""
    )
    return f"{lines[-1][:200] if lines else ''} [{where}]"


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
