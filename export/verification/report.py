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
from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.images import grid
from starflow.runtime.reports.html_page import STYLE, png, section, table

MOST_IMAGES = 8
SMALLEST_IMAGE = 84  # pixels on the page; smaller ones are shown enlarged


def write_report(path: Path, bundle: Bundle, result: Verification, tolerances: Tolerances) -> None:
    """Write the report; the same result gives the same bytes.

    Raises:
        UsageError: the folder cannot be written.
    """
    text = "\n".join(_page(bundle, result, tolerances)) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _page(bundle: Bundle, result: Verification, tolerances: Tolerances) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>starflow verify: {escape(bundle.root.name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>"
    yield from _verdict(bundle, result)
    yield from _compared(bundle, result)
    yield from _not_run(result)
    yield from _summary(result)
    if result.compared:
        yield from _plots(result)
    if result.images:
        yield from _images(result)
    yield from _every_block(result)
    yield from _tolerances(tolerances)
    yield "<footer>How to read this page: docs/verification.md, which also says what each route proves and what it "
    yield "does not.</footer>\n</main>\n</body>\n</html>"


def _verdict(bundle: Bundle, result: Verification) -> Iterator[str]:
    state, word = ("passed", "PASSED") if result.passed else ("failed", "FAILED")
    yield f'<header class="{state}"><h1><span class="verdict">{word}</span> {escape(bundle.root.name)}</h1>'
    yield f"<p>{escape(headline(result))}</p></header>"
    wrong = findings(result)
    if wrong:
        rows = (
            f'<tr class="failing"><td>{escape(r)}</td><td class="wrap">{escape(what)}</td></tr>' for r, what in wrong
        )
        yield from section("What is wrong", table(("route", "finding"), rows))


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


def _not_run(result: Verification) -> Iterator[str]:
    if result.not_run:
        rows = (
            f'<tr><td><span class="note">not run</span></td><td>{escape(r.route)}</td><td class="wrap">{escape(r.why)}</td></tr>'
            for r in result.not_run
        )
        text = "Nothing is known about these; they count neither as passed nor as failed."
        yield from section("What was not run", table(("", "route", "why"), rows), text)


def _summary(result: Verification) -> Iterator[str]:
    text = (
        "Of every route and kind of input, the flow block nearest to its tolerance. Errors: the largest difference of a single "
        "value; the same, scaled by max(1, |value|); and the difference of all values relative to their size (Euclidean norm)."
    )
    yield from section("Summary", _measurements(list(worst(result)), result), text)


def _every_block(result: Verification) -> Iterator[str]:
    content = "\n".join(_measurements(result.measurements, result))
    body = [f"<details><summary>{count(len(result.measurements), 'comparison')}</summary>{content}</details>"]
    yield from section("Every flow block", body)


def _measurements(measurements: Sequence[Measurement], result: Verification) -> Iterator[str]:
    columns = (
        "route",
        "inputs",
        "block",
        "largest error",
        "scaled",
        "relative",
        f"at {result.subject.unit}",
        "position",
        "tolerance",
        "",
    )
    colours, previous, rows = route_colours(result), "", []
    for m in measurements:
        new = m.route != previous
        name = f"{_swatch(colours[m.route])}{escape(m.route)}" if new else ""
        previous = m.route
        numbers = (
            m.block,
            figure(m.largest),
            figure(m.scaled),
            figure(m.relative),
            m.token,
            m.position,
            escape(bound(m)),
        )
        cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
        verdict = '<span class="yes">ok</span>' if m.passed else '<span class="no">FAILED</span>'
        classes = " ".join(name for name, on in (("first", new), ("failing", not m.passed)) if on)
        rows.append(f'<tr class="{classes}"><td>{name}</td><td>{m.kind}</td>{cells}<td>{verdict}</td></tr>')
    return table(columns, rows, numbers=range(2, 9))


def _plots(result: Verification) -> Iterator[str]:
    kinds = result.subject.kind_text
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
    body = []
    colours = route_colours(result)
    for route, images in result.images.items():
        shown = images[:MOST_IMAGES]
        sheet = grid(shown, columns=len(shown), padding=2)
        scale = max(1, -(-SMALLEST_IMAGE // shown.shape[1]))
        name = f"{_swatch(colours.get(route, '#8a8f98'))}{escape(route)}{' (reference)' if route == result.reference else ''}"
        width = sheet.shape[1] * scale
        picture = f'<img alt="samples of {escape(route)}" style="width:{width}px" src="{png(sheet)}">'
        body.append(f"<figure><figcaption>{name}</figcaption>{picture}</figure>")
    yield from section("Samples", body, "The same noise and conditions in every row.")


def _tolerances(tolerances: Tolerances) -> Iterator[str]:
    rows = (
        f'<tr><td>{precision}</td><td>{kind}</td><td class="number">{"scaled" if t.measure == "largest" else "relative"} error ≤ '
        f"{t.value:g}</td><td>{'<span class=note>set by hand</span>' if t.chosen else 'default'}</td></tr>"
        for (precision, kind), t in tolerances.items()
    )
    content = "\n".join(table(("precision", "inputs", "tolerance", ""), rows, numbers=(2,)))
    yield from section("Tolerances", [f"<details><summary>By precision and inputs</summary>{content}</details>"])


def _swatch(colour: str) -> str:
    return f'<span class="swatch" style="background:{colour}"></span>'
