"""A verification as one HTML file that needs nothing else: verdict, what was compared, table, plots, images."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from starflow.export.verification.agreement import Measurement
from starflow.export.verification.plots import block_plot, growth_plot, route_colours
from starflow.export.verification.results import bound, count, figure, findings, guard_line, headline, worst
from starflow.export.verification.tolerances import Tolerances
from starflow.export.verification.verify import Verification
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.reports.html_page import folded, images_row, section, swatch, table, verdict, write_page
from starflow.runtime.reports.plot import GREY

MOST_IMAGES = 8
FOOTER = "How to read this page: docs/verification.md, which also says what each route proves and what it does not."


def write_report(path: Path, bundle: Bundle, result: Verification, tolerances: Tolerances) -> None:
    """Write the report; the same result gives the same bytes. UsageError if the file cannot be written."""
    write_page(path, f"starflow verify: {bundle.root.name}", _body(bundle, result, tolerances), FOOTER)


def _body(bundle: Bundle, result: Verification, tolerances: Tolerances) -> Iterator[str]:
    yield from _verdict(bundle, result)
    yield from _compared(bundle, result)
    if result.not_run:
        rows = ((_note("not run"), escape(r.route), _wrapped(r.why)) for r in result.not_run)
        text = "Nothing is known about these; they count neither as passed nor as failed."
        yield from section("What was not run", table(("", "route", "why"), rows), text)
    text = (
        "The flow block nearest to its tolerance, for every route and kind of input. Errors: the largest difference of a single "
        "value; the same, scaled by max(1, |value|); and the difference of all values relative to their size (Euclidean norm)."
    )
    yield from section("Summary", _measurements(list(worst(result)), result), text)
    if result.compared:
        yield from _plots(result)
    if result.images:
        yield from _images(result)
    every = folded(count(len(result.measurements), "comparison"), _measurements(result.measurements, result))
    yield from section("Every flow block", every)
    yield from section("Tolerances", folded("By precision and inputs", _tolerances(tolerances)))


def _verdict(bundle: Bundle, result: Verification) -> Iterator[str]:
    word = f'<span class="verdict">{"PASSED" if result.passed else "FAILED"}</span>'
    yield verdict(f"{word} {escape(bundle.root.name)}", escape(headline(result)), passed=result.passed)
    rows = [(escape(route), _wrapped(what)) for route, what in findings(result)]
    if rows:
        yield from section("What is wrong", table(("route", "finding"), rows, kinds=["failing"] * len(rows)))


def _compared(bundle: Bundle, result: Verification) -> Iterator[str]:
    manifest, case = bundle.manifest, result.case
    shape = " x ".join(map(str, manifest.model.data_shape))
    measured = {m.route for m in result.measurements} - {result.reference}
    facts = {
        "Reference": result.reference,
        "Compared with it": ", ".join(route for route in result.routes if route in measured) or "nothing",
        "Sampled": f"{count(len(case.noise), 'image')} in batches of {manifest.batch}, seed {case.seed}, "
        f"guidance {case.guidance:g}, condition: {manifest.conditioning.kind}",
        "Parser guard": guard_line(result),
        "Model": f"{result.subject.model}; data {shape}",
        "Bundle": f"exported {manifest.provenance.created} from checkpoint {manifest.provenance.checkpoint_sha256[:16]}",
        "Tools": ", ".join(f"{name} {version}" for name, version in manifest.provenance.tools.items()),
    }
    rows = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    yield from section("What was compared", [f"<dl>{rows}</dl>"])


def _measurements(measurements: Sequence[Measurement], result: Verification) -> Iterator[str]:
    numbers = ("block", "largest error", "scaled", "relative", f"at {result.subject.unit}", "position", "tolerance")
    colours, previous, rows, kinds = route_colours(result), "", [], []
    for m in measurements:
        new, previous = m.route != previous, m.route
        name = f"{swatch(colours[m.route])}{escape(m.route)}" if new else ""
        errors = map(figure, (m.largest, m.scaled, m.relative))
        verdict = '<span class="yes">ok</span>' if m.passed else '<span class="no">FAILED</span>'
        rows.append((name, m.kind, m.block, *errors, m.token, m.position, escape(bound(m)), verdict))
        kinds.append(" ".join(name for name, on in (("first", new), ("failing", not m.passed)) if on))
    return table(("route", "inputs", *numbers, ""), rows, range(2, 9), kinds)


def _plots(result: Verification) -> Iterator[str]:
    kinds = result.subject.kinds
    text = (
        f"{kinds['sample']} The dashed line is the reference against itself, after every value of its noise was moved by one "
        "unit in the last place: how far this model alone carries the smallest disturbance. A route that runs in parallel to it "
        "differs by rounding; one that rises on its own, or jumps, computes something else."
    )
    yield from section("Error growth over the whole sample", [growth_plot(result)], text)
    yield from section("Inputs given: the error of the arithmetic", [block_plot(result, "given")], kinds["given"])
    if "block" in kinds:
        yield from section("Each flow block on its own tokens", [block_plot(result, "block")], kinds["block"])


def _images(result: Verification) -> Iterator[str]:
    colours = route_colours(result)
    body = [
        images_row(
            f"{route}{' (reference)' if route == result.reference else ''}",
            images[:MOST_IMAGES],
            swatch(colours.get(route, GREY)),
        )
        for route, images in result.images.items()
    ]
    yield from section("Samples", body, "The same noise and conditions in every row.")


def _tolerances(tolerances: Tolerances) -> Iterator[str]:
    rows = (
        (
            precision,
            kind,
            f"{'scaled' if t.measure == 'largest' else 'relative'} error ≤ {t.value:g}",
            _note("set by hand") if t.chosen else "default",
        )
        for (precision, kind), t in tolerances.items()
    )
    return table(("precision", "inputs", "tolerance", ""), rows, numbers=(2,))


def _note(text: str) -> str:
    return f'<span class="note">{text}</span>'


def _wrapped(text: str) -> str:
    return f'<span class="wrap">{escape(text)}</span>'
