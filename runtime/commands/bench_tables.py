"""What `starflow bench` prints for people."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from starflow.runtime.diagnostics.benchmark import Benchmark, VariantMemory, VariantTiming
from starflow.runtime.diagnostics.operator_profile import StepProfile
from starflow.runtime.reports.tables import mebibytes, plain_table


def print_comparison(console: Console, benchmark: Benchmark) -> None:
    """One line for each variant and way of decoding."""
    say(
        console,
        f"memory bandwidth {benchmark.bandwidth / 1e9:.1f} GB/s, measured between {benchmark.repetitions} repetitions; "
        f"batch {benchmark.variants[0].batch}",
    )
    columns = ("ms/\nimage", "ms/\ntoken", "spread", "images\n/s", "bytes/\ntoken", "% of\nfloor", "passes", "error")
    table = _table("variant", *columns)
    for timing in benchmark.variants:
        total = timing.total
        table.add_row(
            timing.variant if timing.decoding == "sequential" else "  by its plan",
            f"{timing.image_milliseconds:.{0 if timing.image_milliseconds >= 1000 else 1}f}",
            f"{total.milliseconds:.3f}",
            f"{100 * total.spread:.0f} %",
            f"{timing.images_per_second:.2f}",
            mebibytes(total.bytes),
            f"{total.percent_of_floor:.0f}",
            f"{total.passes:.0f}",
            "exact" if timing.error is None else f"{timing.error:.1e}",
        )
    console.print(table)
    if len(benchmark.variants) > 1:
        say(console, f"error: of the samples, relative to {benchmark.exact} decoded token by token")
    for timing in benchmark.variants:
        if timing.decoding == "plan":
            predicted = timing.predicted_milliseconds
            said = f"{predicted:.1f} ms" if predicted is not None else "nothing (it was not calibrated here)"
            say(
                console,
                f"{timing.variant}'s plan: predicted {said}, measured {timing.batch_milliseconds:.1f} ms a batch",
            )
    if any(timing.total.percent_of_floor > 100 for timing in benchmark.variants):
        say(console, "More than 100 %: the weights stay in a processor cache, and memory is not the floor here.")


def print_memory(console: Console, memory: Sequence[VariantMemory]) -> None:
    """What the variants take, as predicted and as measured."""
    table = _table("memory", "weights", "caches", "buffers", "predicted", "measured", "peak")
    for each in memory:
        found, measured = each.predicted, each.measured
        table.add_row(
            each.variant,
            *map(mebibytes, (found.weights, found.caches, found.buffers, found.total)),
            *(map(mebibytes, (measured.resident, measured.peak)) if measured else ("-", "-")),
        )
    console.print(table)


def print_blocks(console: Console, timing: VariantTiming) -> None:
    """The flow blocks of a variant."""
    title = f"{timing.variant}, {timing.decoding}, by flow block"
    table = _table("flow block", "ms/token", "spread", "bytes/token", "floor ms", "% of floor", "passes", title=title)
    for row in timing.rows:
        if row.block is None:
            table.add_section()
        table.add_row(
            "all" if row.block is None else str(row.block),
            f"{row.milliseconds:.3f}",
            f"{100 * row.spread:.0f} %",
            mebibytes(row.bytes),
            f"{row.floor_milliseconds:.3f}",
            f"{row.percent_of_floor:.0f}",
            f"{row.passes:.0f}",
        )
    console.print(table)


def print_profile(console: Console, profile: StepProfile) -> None:
    """What a token's time consists of."""
    title = f"{profile.variant}: where a token's time goes"
    table = _table("", "ms/token", "%", "floor", "above", "most of it", title=title)
    for kind in profile.kinds:
        largest = next(iter(kind.operators.items()), None)
        table.add_row(
            kind.kind,
            _milliseconds(kind.milliseconds),
            f"{100 * kind.milliseconds / profile.milliseconds:.0f}",
            _milliseconds(kind.floor_milliseconds) if kind.floor_milliseconds else "",
            _milliseconds(kind.milliseconds - kind.floor_milliseconds),
            f"{largest[0]} {_milliseconds(largest[1])}" if largest else "",
        )
    table.add_section()
    table.add_row(
        "a token",
        _milliseconds(profile.milliseconds),
        "100",
        _milliseconds(profile.floor_milliseconds),
        _milliseconds(profile.milliseconds - profile.floor_milliseconds),
    )
    console.print(table)
    say(console, f"The profiled steps took {profile.profiled_milliseconds:.3f} ms; the profiler's cost is taken off.")


def say(console: Console, line: str) -> None:
    """A line that the reader's window may wrap, but we do not."""
    console.print(line, highlight=False, soft_wrap=True)


def _milliseconds(value: float) -> str:
    return f"{value:.{2 if value >= 10 else 3}f}"


def _table(first: str, *columns: str, title: str | None = None) -> Table:
    table = plain_table(title=title, dense=True)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
