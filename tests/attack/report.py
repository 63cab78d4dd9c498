"""The table of all counts."""

from rich.console import Console

from starflow.runtime.reports.tables import plain_table
from tests.attack.tally import Tally

COLUMNS = {
    "refused": ("refused",),
    "whole": ("same", "whole"),
    "same disk": ("same disk",),
    "other weights": ("weights differ",),
    "another model": ("another model",),
    "tracebacks": ("traceback",),
    "aborts": ("abort",),
    "hangs": ("hang",),
    "memory": ("memory",),
    "silent": ("silent", "neither", "broken"),
}


def print_table(tallies: dict[str, Tally]) -> None:
    """Print a row for each part; faults of other kinds are in the last column."""
    table = plain_table("part", "cases", *COLUMNS, "other faults")
    for part, tally in tallies.items():
        counts = [sum(tally.counts[outcome] for outcome in outcomes) for outcomes in COLUMNS.values()]
        others = tally.counts.total() - sum(counts)
        table.add_row(part, *(f"{count:,}" for count in (tally.counts.total(), *counts, others)))
    Console(width=180).print(table)
