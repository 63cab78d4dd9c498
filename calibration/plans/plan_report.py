"""What the calibration of a plan found: printed as a table, written as one HTML file, drawn as a plot, or given as JSON."""

import dataclasses
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow.runtime.plain.terminal import Terminal
from starflow.runtime.reports.html_page import section, table, verdict, write_page
from starflow.runtime.reports.plot import svg_plot, write_plot
from starflow.runtime.reports.tables import plain_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class ReportTable:
    """A table of a report; cells are plain text."""

    title: str
    text: str  # what its columns say, in a sentence or two
    columns: tuple[str, ...]  # their heads; the first one and those in `words` hold words, all others numbers
    rows: tuple[tuple[str, ...], ...]
    words: tuple[str, ...] = ()  # heads of further columns of words


@dataclasses.dataclass(frozen=True)
class PlanReport:
    """What was found, whatever the family."""

    stored: bool  # whether the bundle got a plan
    outcome: str  # one line: what was chosen, or why nothing was
    facts: tuple[str, ...]  # further lines: error against budget, times, passes
    tables: tuple[ReportTable, ...]  # the first one is printed; an HTML file holds them all
    values: dict[str, Any]  # everything that was measured, for programs
    size: tuple[float, float]  # width and height of the plot in inches
    draw: Callable[["Figure"], None]

    def print(self) -> None:
        """Print the first table, the facts and the outcome."""
        first = self.tables[0]
        printed = plain_table(*first.columns, text=first.words)
        for cells in first.rows:
            printed.add_row(*cells)
        console = Terminal()
        console.print(printed)
        for line in (*self.facts, self.outcome):
            console.print(line, soft_wrap=True)

    def write_plot(self, path: Path) -> None:
        """Write the plot; UsageError if the file cannot be written."""
        write_plot(path, self.size, self.draw)

    def write_page(self, path: Path, name: str) -> None:
        """Write an HTML file about the bundle of this name; UsageError if it cannot be written."""
        write_page(path, f"starflow calibrate --plan: {name}", self._body(name), FOOTER)

    def _body(self, name: str) -> Iterator[str]:
        yield verdict(f"Plan of {escape(name)}", escape(self.outcome), passed=self.stored)
        yield from section("Result", (f"<div>{escape(fact)}</div>" for fact in self.facts))
        yield from section("Error against passes", [svg_plot("plan", self.size, self.draw)])
        for each in self.tables:
            numbers = [i for i, column in enumerate(each.columns) if i and column not in each.words]
            rows = ([escape(cell).replace("\n", "<br>") for cell in cells] for cells in each.rows)
            yield from section(each.title, table(each.columns, rows, numbers), each.text)


FOOTER = (
    "Times are medians; what is compared took turns in one process. Errors are relative: ||x - reference|| / ||reference|| over "
    "samples that the search had not seen, except where a table says otherwise."
)


def milliseconds(value: float | None) -> str:
    """A time for a table; empty where it is not known."""
    return "" if value is None else f"{value:.2f} ms"
