"""A weight calibration as one HTML file: what was tried, what was taken, every matrix, and samples side by side."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from starflow.calibration.weights.results import KEPT, SOURCE, MatrixResult, WeightCalibration
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import ImageSpec
from starflow.runtime.diagnostics.benchmark import Benchmark
from starflow.runtime.plain.images import to_uint8
from starflow.runtime.reports.html_page import folded, images_row, section, table, verdict, write_page
from starflow.runtime.reports.plot import COLOURS, GREY, LIMIT, svg_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = 12  # shown in a row
FOOTER = (
    "Errors are relative to the same model with exact weights, ||x - exact|| / ||exact||, over whole samples from the same noise. "
    "A flow feeds every token back into itself, so errors grow along the way, and some images carry far more of the total than "
    "others."
)


def write_report(
    path: Path, bundle: Bundle, calibrations: Sequence[WeightCalibration], benchmark: Benchmark | None
) -> None:
    """Write the report.

    Args:
        calibrations: One for each new variant.
        benchmark: Times of the cpu variants, where they were taken.

    Raises:
        UsageError: the folder cannot be written.
    """
    title = f"starflow calibrate: {bundle.root.name}"
    write_page(path, title, _body(bundle, calibrations, benchmark), FOOTER)


def _body(bundle: Bundle, calibrations: Sequence[WeightCalibration], benchmark: Benchmark | None) -> Iterator[str]:
    for calibration in calibrations:
        yield _verdict(bundle, calibration)
        yield from _measured(calibration)
        yield from _frontier(calibration)
        if bundle.manifest.output == "images" and bundle.manifest.model.data_shape[0] in (1, 3):
            yield from _samples(bundle.manifest.image, calibration)
        yield from _blocks(calibration)
        yield from _matrices(calibration)
    if benchmark:
        yield from _speed(benchmark)


def _verdict(bundle: Bundle, calibration: WeightCalibration) -> str:
    chosen, source = calibration.chosen, calibration.measurement(SOURCE)
    return verdict(
        escape(f"{calibration.variant.name} of {bundle.root.name}"),
        f"{chosen.bytes / source.bytes:.0%} of the bytes at {_percent(chosen.error.total)} error of the whole sample "
        f"(allowed: {_percent(calibration.request.budget)}; median image {_percent(chosen.error.median)}, worst "
        f"{_percent(chosen.error.worst)}); measured on {calibration.images} images, guidance {calibration.guidance:g}.",
    )


def _measured(calibration: WeightCalibration) -> Iterator[str]:
    source = calibration.measurement(SOURCE)
    rows = []
    for each in calibration.measured:
        taken = each is calibration.chosen
        name = f"<b>{escape(each.what)}, taken</b>" if taken else escape(each.what)
        errors = map(_percent, (each.error.total, each.error.median, each.error.worst))
        rows.append((name, _megabytes(each.bytes), f"{each.bytes / source.bytes:.0%}", *errors))
    text = (
        "Every row was sampled. Plain rounding takes the nearest code for every weight and quantises all matrices; so does "
        "'calibrated, all matrices', after calibration. Choices keep some matrices more exact to stay within the budget."
    )
    columns = ("weights", "MB a pass reads", "of source", "error", "median image", "worst image")
    yield from section("Measured", table(columns, rows, range(1, 6)), text)


def _frontier(calibration: WeightCalibration) -> Iterator[str]:
    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        errors, sizes = zip(*calibration.frontier, strict=True)
        axes.plot(np.array(sizes) / 1e6, errors, color=GREY, label="predicted from single matrices")
        for index, each in enumerate(calibration.measured[1:]):
            if np.isfinite(each.error.total):
                mark, taken = ("s", ", taken") if each is calibration.chosen else ("o", "")
                colour, label = COLOURS[index % len(COLOURS)], f"{each.what}{taken}"
                axes.plot(each.bytes / 1e6, each.error.total, mark, color=colour, label=label)
        axes.axhline(calibration.request.budget, color=LIMIT, linewidth=0.8, linestyle=(0, (4, 2)), label="budget")
        axes.set(yscale="log", xlabel="MB of weights a pass reads", ylabel="error of the sample")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))

    yield from section("Bytes against error", [svg_plot(calibration.variant.name, (10.4, 3.2), draw)])


def _samples(image: ImageSpec, calibration: WeightCalibration) -> Iterator[str]:
    record = calibration.variant.quantization
    exact = f"{record.source if record else ''} (exact)"
    body = [
        images_row(exact if name == SOURCE else name, to_uint8(np.nan_to_num(x[:IMAGES]) / image.scale + image.shift))
        for name, x in calibration.samples.items()
    ]
    yield from section("Samples", body, "The same noise and conditions in every row.")


def _blocks(calibration: WeightCalibration) -> Iterator[str]:
    rows = []
    treatments = sorted({matrix.treatment for matrix in calibration.matrices})
    for block in dict.fromkeys(matrix.block for matrix in calibration.matrices):
        own = [matrix for matrix in calibration.matrices if matrix.block == block]
        counts = (str(sum(matrix.treatment == treatment for matrix in own)) for treatment in treatments)
        stored, source = sum(m.bytes for m in own), sum(m.source_bytes for m in own)
        rows.append((block, *counts, _megabytes(source), _megabytes(stored), f"{stored / source:.0%}"))
    columns = ("flow block", *treatments, "MB before", "MB now", "of before")
    yield from section("Flow blocks", table(columns, rows, range(1, len(columns))), "Number of matrices in each type.")


def _matrices(calibration: WeightCalibration) -> Iterator[str]:
    names = list(dict.fromkeys(name for matrix in calibration.matrices for name in matrix.sample_errors))
    columns = (
        "matrix", "out x in", "became", "output error, plain", "calibrated", *(f"sample error, {n}" for n in names), "KB before", "KB now",
    )  # fmt: skip
    rows = table(columns, (_matrix(matrix, names) for matrix in calibration.matrices), range(3, len(columns)))
    text = (
        "Output error: of the product's outputs from its weights alone, in the smallest type. Sample error: what the matrix alone does "
        "to the samples, predicted from what it does to its flow block; activations rounded on the way included."
    )
    yield from section("Matrices", folded("All", rows, opened=True), text)


def _matrix(matrix: MatrixResult, names: Sequence[str]) -> tuple[str, ...]:
    errors = (_percent(matrix.sample_errors[n]) if n in matrix.sample_errors else "" for n in names)
    return (
        escape(matrix.weight),
        f"{matrix.shape[0]} x {matrix.shape[1]}",
        f'<span class="note">{KEPT}</span>' if matrix.treatment == KEPT else escape(matrix.treatment),
        _percent(matrix.plain_output_error),
        _percent(matrix.output_error),
        *errors,
        f"{matrix.source_bytes / 1e3:.0f}",
        f"{matrix.bytes / 1e3:.0f}",
    )


def _speed(benchmark: Benchmark) -> Iterator[str]:
    rows = (
        (
            escape(timing.variant),
            f"{timing.total.milliseconds:.3f}",
            f"{timing.total.spread:.0%}",
            _megabytes(timing.total.bytes),
            f"{timing.total.memory_bandwidth_percent:.0f} %",
            f"{timing.images_per_second:.2f}",
        )
        for timing in benchmark.variants
    )
    text = (
        f"Token by token, in turns in one process, medians of {benchmark.repetitions} batches; memory bandwidth "
        f"{benchmark.bandwidth / 1e9:.1f} GB/s. `starflow bench` measures with more care."
    )
    columns = ("variant", "ms a token", "spread", "MB a token", "of memory bandwidth", "images/s")
    yield from section("Speed on this machine", table(columns, rows, range(1, 6)), text)


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %" if np.isfinite(value) else "broke down"


def _megabytes(value: int) -> str:
    return f"{value / 1e6:.2f}"
