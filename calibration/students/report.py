"""What was measured of a student, as text."""

from starflow.calibration.students.measurement import Measured
from starflow.calibration.students.teacher_bundle import BATCH
from starflow.runtime.plain.terminal import Terminal
from starflow.runtime.reports.tables import plain_table


def print_ways(measured: Measured) -> None:
    """Print a row for each way to decode."""
    heads = ("error", "Fréchet", "diversity", "precision", "recall", "bits", "ms", "faster")
    table = plain_table("plan", *heads, dense=True)
    exact = measured.ways[0]
    for way in measured.ways:
        table.add_row(
            way.plan,
            f"{way.error:.3f}",
            f"{way.frechet:.3g}" if way.frechet < 1000 else f"{way.frechet:.0f}",
            f"{way.diversity:.3f}",
            f"{way.precision:.3f}",
            f"{way.recall:.3f}",
            "inf" if way.bits_per_dim is None else f"{way.bits_per_dim:.3f}",
            f"{way.milliseconds:.{1 if way.milliseconds < 100 else 0}f}",
            f"{exact.milliseconds / way.milliseconds:.2f}",
        )
    console = Terminal()
    console.print(table)
    console.print(
        f"{measured.images} samples each, guidance {measured.guidance:g}, against the exact sampler from the same noise; "
        f"its own row compares two sets of it; bits per dimension by the unguided teacher, the fewer the likelier; "
        f"times of a batch of {BATCH}",
        soft_wrap=True,
    )
