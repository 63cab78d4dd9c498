"""A weight calibration as one HTML file: what was tried, what was taken, every matrix, and samples side by side."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from starflow.calibration.weights.results import KEPT, SOURCE, MatrixResult, WeightCalibration
from starflow.export.verification.plots import COLOURS, GREY
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import ImageSpec
from starflow.runtime.diagnostics.benchmark import Benchmark
from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.images import grid, to_uint8
from starflow.runtime.reports.html_page import STYLE, png, section, table
from starflow.runtime.reports.plot import STYLE as PLOT_STYLE

IMAGES = 12  # shown in a row
SMALLEST_IMAGE = 72  # pixels on the page


def write_report(
    path: Path, bundle: Bundle, calibrations: Sequence[WeightCalibration], benchmark: Benchmark | None
) -> None:
    """Write the report.

    Args:
        path: The HTML file.
        bundle: The bundle.
        calibrations: One for each new variant.
        benchmark: Times of the cpu variants, where they were taken.

    Raises:
        UsageError: the folder cannot be written.
    """
    text = "\n".join(_page(bundle, calibrations, benchmark)) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _page(bundle: Bundle, calibrations: Sequence[WeightCalibration], benchmark: Benchmark | None) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>starflow calibrate: {escape(bundle.root.name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>"
    for calibration in calibrations:
        yield from _verdict(bundle, calibration)
        yield from _measured(calibration)
        yield from _frontier(calibration)
        if bundle.manifest.output == "images" and bundle.manifest.model.data_shape[0] in (1, 3):
            yield from _samples(bundle.manifest.image, calibration)
        yield from _blocks(calibration)
        yield from _matrices(calibration)
    if benchmark:
        yield from _speed(benchmark)
    yield "<footer>Errors are relative to the same model with exact weights, ||x - exact|| / ||exact||, over whole samples from the "
    yield "same noise. A flow feeds every token back into itself, so errors grow along the way, and some images carry far more "
    yield "of the total than others.</footer>\n</main>\n</body>\n</html>"


def _verdict(bundle: Bundle, calibration: WeightCalibration) -> Iterator[str]:
    chosen, source = calibration.chosen, calibration.measurement(SOURCE)
    yield f'<header class="passed"><h1>{escape(calibration.variant.name)} of {escape(bundle.root.name)}</h1>'
    yield f"<p>{chosen.bytes / source.bytes:.0%} of the bytes at {_percent(chosen.error.total)} error of the whole sample "
    yield f"(allowed: {_percent(calibration.request.budget)}; median image {_percent(chosen.error.median)}, worst "
    yield f"{_percent(chosen.error.worst)}); measured on {calibration.images} images, guidance {calibration.guidance:g}.</p></header>"


def _measured(calibration: WeightCalibration) -> Iterator[str]:
    source = calibration.measurement(SOURCE)
    rows = []
    for each in calibration.measured:
        taken = each is calibration.chosen
        name = f"<b>{escape(each.what)}, taken</b>" if taken else escape(each.what)
        error = each.error
        cells = (
            _megabytes(each.bytes),
            f"{each.bytes / source.bytes:.0%}",
            *map(_percent, (error.total, error.median, error.worst)),
        )
        rows.append(f"<tr><td>{name}</td>{_numbers(cells)}</tr>")
    text = (
        "Every row was sampled. Plain rounding takes the nearest code for every weight and quantises all matrices; so does "
        "'calibrated, all matrices', after calibration. Choices keep some matrices more exact to stay within the budget."
    )
    columns = ("weights", "MB a pass reads", "of source", "error", "median image", "worst image")
    yield from section("Measured", table(columns, rows, range(1, 6)), text)


def _frontier(calibration: WeightCalibration) -> Iterator[str]:
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(10.4, 3.2))
        axes = figure.subplots()
        errors, sizes = zip(*calibration.frontier, strict=True)
        axes.plot(np.array(sizes) / 1e6, errors, color=GREY, label="predicted from single matrices")
        for each, colour in zip(calibration.measured[1:], _colours(len(calibration.measured) - 1), strict=True):
            if np.isfinite(each.error.total):
                taken = each is calibration.chosen
                label = f"{each.what}{', taken' if taken else ''}"
                axes.plot(each.bytes / 1e6, each.error.total, "s" if taken else "o", color=colour, label=label)
        axes.axhline(calibration.request.budget, color="#c2272d", linewidth=0.8, linestyle=(0, (4, 2)), label="budget")
        axes.set_yscale("log")
        axes.set_xlabel("MB of weights a pass reads")
        axes.set_ylabel("error of the sample")
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.tight_layout()
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    svg = re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
    yield from section("Bytes against error", [svg])


def _samples(image: ImageSpec, calibration: WeightCalibration) -> Iterator[str]:
    body = []
    for name, x in calibration.samples.items():
        shown = to_uint8(np.nan_to_num(x[:IMAGES]) / image.scale + image.shift)
        sheet = grid(shown, columns=len(shown), padding=2)
        scale = max(1, -(-SMALLEST_IMAGE // shown.shape[1]))
        label = f"{calibration.variant.quantization.source if calibration.variant.quantization else ''} (exact)"
        caption = escape(label if name == SOURCE else name)
        picture = f'<img alt="samples of {caption}" width="{sheet.shape[1] * scale}" src="{png(sheet)}">'
        body.append(f"<figure><figcaption>{caption}</figcaption>{picture}</figure>")
    yield from section("Samples", body, "The same noise and conditions in every row.")


def _blocks(calibration: WeightCalibration) -> Iterator[str]:
    rows = []
    treatments = sorted({matrix.treatment for matrix in calibration.matrices})
    for block in dict.fromkeys(matrix.block for matrix in calibration.matrices):
        own = [matrix for matrix in calibration.matrices if matrix.block == block]
        counts = (str(sum(matrix.treatment == treatment for matrix in own)) for treatment in treatments)
        stored, source = sum(m.bytes for m in own), sum(m.source_bytes for m in own)
        cells = (*counts, _megabytes(source), _megabytes(stored), f"{stored / source:.0%}")
        rows.append(f"<tr><td>{block}</td>{_numbers(cells)}</tr>")
    columns = ("flow block", *treatments, "MB before", "MB now", "of before")
    yield from section("Flow blocks", table(columns, rows, range(1, len(columns))), "Matrices by what became of them.")


def _matrices(calibration: WeightCalibration) -> Iterator[str]:
    names = list(calibration.matrices[0].sample_errors)
    columns = (
        "matrix", "out x in", "became", "output error, plain", "calibrated", *(f"sample error, {n}" for n in names), "KB before", "KB now",
    )  # fmt: skip
    rows = table(columns, (_matrix(matrix, names) for matrix in calibration.matrices), range(3, len(columns)))
    text = (
        "Output error: of the product's outputs from its weights alone, in the smallest type. Sample error: what the matrix alone does "
        "to the samples, predicted from what it does to its flow block; activations rounded on the way included."
    )
    yield from section("Matrices", ["<details open><summary>All</summary>", *rows, "</details>"], text)


def _matrix(matrix: MatrixResult, names: Sequence[str]) -> str:
    errors = (_percent(matrix.sample_errors[n]) if n in matrix.sample_errors else "" for n in names)
    cells = (
        _percent(matrix.plain_output_error),
        _percent(matrix.output_error),
        *errors,
        f"{matrix.source_bytes / 1e3:.0f}",
        f"{matrix.bytes / 1e3:.0f}",
    )
    became = f'<span class="note">{KEPT}</span>' if matrix.treatment == KEPT else escape(matrix.treatment)
    shape = f"{matrix.shape[0]} x {matrix.shape[1]}"
    return f"<tr><td>{escape(matrix.weight)}</td><td>{shape}</td><td>{became}</td>{_numbers(cells)}</tr>"


def _speed(benchmark: Benchmark) -> Iterator[str]:
    rows = []
    for timing in benchmark.variants:
        total = timing.total
        cells = (
            f"{total.milliseconds:.3f}",
            f"{total.spread:.0%}",
            _megabytes(total.bytes),
            f"{total.memory_bandwidth_percent:.0f} %",
            f"{timing.images_per_second:.2f}",
        )
        rows.append(f"<tr><td>{escape(timing.variant)}</td>{_numbers(cells)}</tr>")
    text = (
        f"Token by token, interleaved in one process, medians of {benchmark.repetitions} batches; memory bandwidth beside it "
        f"{benchmark.bandwidth / 1e9:.1f} GB/s. `starflow bench` measures with more care."
    )
    columns = ("variant", "ms a token", "spread", "MB a token", "of memory bandwidth", "images/s")
    yield from section("Speed on this machine", table(columns, rows, range(1, 6)), text)


def _numbers(cells: Iterable[str]) -> str:
    return "".join(f'<td class="number">{cell}</td>' for cell in cells)


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %" if np.isfinite(value) else "broke down"


def _megabytes(value: int) -> str:
    return f"{value / 1e6:.2f}"
