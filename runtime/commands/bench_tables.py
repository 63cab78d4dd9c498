"""What `starflow bench` prints for people."""

from collections.abc import Sequence

from starflow.runtime.diagnostics.benchmark import Benchmark, BlockTiming, VariantMemory, VariantTiming
from starflow.runtime.diagnostics.operator_profile import StepProfile
from starflow.runtime.plain.terminal import Terminal
from starflow.runtime.reports.tables import mebibytes, plain_table


def print_comparison(console: Terminal, benchmark: Benchmark) -> None:
    """One line for each variant and way of sampling."""
    by_token = benchmark.unit == "token"
    console.print(
        f"memory bandwidth {benchmark.bandwidth / 1e9:.1f} GB/s, measured between {benchmark.repetitions} repetitions; "
        f"batch {benchmark.variants[0].batch}"
    )
    table = plain_table("variant", "ms/\nimage", "images\n/s", *_columns(benchmark.unit), "error", dense=True)
    for timing in benchmark.variants:
        table.add_row(
            "  by its plan" if by_token and timing.decoding == "plan" else timing.variant,
            f"{timing.image_milliseconds:.{0 if timing.image_milliseconds >= 1000 else 1}f}",
            _four_digits(timing.images_per_second),
            *_figures(timing.total),
            "exact" if timing.error is None else f"{timing.error:.1e}",
        )
    console.print(table)
    for timing in benchmark.variants:
        if timing.decoding == "plan":
            how = _prediction(timing) if by_token else timing.plan
            console.print(f"{timing.variant}'s plan: {how}, measured {timing.batch_milliseconds:.1f} ms per batch")
    if len(benchmark.variants) > 1:
        how = "decoded token by token" if by_token else "integrated by its plan"
        console.print(f"error: relative difference of the samples from those of {benchmark.exact} {how}")
    if any(timing.total.memory_bandwidth_percent > 100 for timing in benchmark.variants):
        console.print(
            "More than 100 %: the weights stay in a processor cache, so memory does not limit the speed here."
        )


def print_memory(console: Terminal, memory: Sequence[VariantMemory]) -> None:
    """What the variants take, as predicted and as measured."""
    table = plain_table("memory", "weights", "caches", "buffers", "predicted", "measured", "peak", dense=True)
    for each in memory:
        found, measured = each.predicted, each.measured
        table.add_row(
            each.variant,
            *map(mebibytes, (found.weights, found.caches, found.buffers, found.total)),
            *(map(mebibytes, (measured.resident, measured.peak)) if measured else ("-", "-")),
        )
    console.print(table)


def print_blocks(console: Terminal, timing: VariantTiming) -> None:
    """The flow blocks of a variant."""
    title = f"{timing.variant}, {timing.decoding}, by flow block"
    table = plain_table("flow block", "floor\nms", *_columns("token"), title=title, dense=True)
    for row in timing.rows:
        if row.block is None:
            table.add_section()
        table.add_row("all" if row.block is None else str(row.block), f"{row.floor_milliseconds:.3f}", *_figures(row))
    console.print(table)


def print_profile(console: Terminal, profile: StepProfile) -> None:
    """What a token's time consists of."""
    title = f"{profile.variant}: where a token's time goes"
    table = plain_table("", "ms/token", "%", "floor", "above", "most of it", title=title, dense=True)

    def add(name: str, milliseconds: float, floor: float, largest: str = "") -> None:
        table.add_row(
            name,
            _milliseconds(milliseconds),
            f"{100 * milliseconds / profile.milliseconds:.0f}",
            _milliseconds(floor) if floor else "",
            _milliseconds(milliseconds - floor),
            largest,
        )

    for kind in profile.kinds:
        largest = [f"{name} {_milliseconds(time)}" for name, time in kind.operators.items()][:1]
        add(kind.kind, kind.milliseconds, kind.floor_milliseconds, *largest)
    table.add_section()
    add("a token", profile.milliseconds, profile.floor_milliseconds)
    console.print(table)
    console.print(
        f"The profiled steps took {profile.profiled_milliseconds:.3f} ms; the profiler's own cost is taken off."
    )


def _columns(unit: str) -> tuple[str, ...]:
    return f"ms/\n{unit}", "spread", f"bytes/\n{unit}", "% of\nmemory\nband-\nwidth", "passes"


def _figures(row: BlockTiming) -> tuple[str, ...]:
    return (
        f"{row.milliseconds:.3f}",
        f"{100 * row.spread:.0f} %",
        mebibytes(row.bytes),
        f"{row.memory_bandwidth_percent:.0f}",
        f"{row.passes:.0f}",
    )


def _four_digits(value: float) -> str:
    """At most four digits, two of them behind the point: the table has to fit 80 columns, however fast the machine is."""
    return f"{value:.{min(2, max(0, 4 - len(str(int(value)))))}f}"


def _prediction(timing: VariantTiming) -> str:
    predicted = timing.predicted_milliseconds
    return "not calibrated here" if predicted is None else f"predicted {predicted:.1f} ms"


def _milliseconds(value: float) -> str:
    return f"{value:.{2 if value >= 10 else 3}f}"
