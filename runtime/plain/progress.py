"""A progress bar where somebody watches, silence where nobody does."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from starflow.runtime.plain.terminal import Terminal


class Report(Protocol):
    """Takes how much is done, of how much, and what is being done."""

    def __call__(self, done: int, total: int, doing: str | None = None) -> None: ...


def no_report(done: int, total: int, doing: str | None = None) -> None:
    """Report to nobody."""


@contextmanager
def progress_bar(what: str, *, enabled: bool = True) -> Iterator[Report]:
    """A bar on standard error while the context lasts; off when that is not a terminal."""
    console = Terminal(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not (enabled and sys.stderr.isatty())) as progress:
        task = progress.add_task(what, total=None)

        def report(done: int, total: int, doing: str | None = None) -> None:
            progress.update(task, completed=done, total=total, description=doing or what)

        yield report
