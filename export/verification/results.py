"""A verification as a table on the terminal and as plain values for programs."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from starflow.export.verification.agreement import Measurement
from starflow.export.verification.tolerances import KINDS
from starflow.export.verification.verify import Verification
from starflow.runtime.bundle.bundle import Bundle


def headline(result: Verification) -> str:
    """The verdict in one sentence."""
    routes = {m.route for m in result.measurements if m.route != result.reference}
    missing = f"; {count(len(result.not_run), 'route')} not run" if result.not_run else ""
    if not (result.compared or result.failures or result.guard.failures):
        return f"nothing was compared with {result.reference}{missing}"
    if result.passed:
        return f"{count(len(routes), 'route')} agree{'s' if len(routes) == 1 else ''} with {result.reference}{missing}"
    failed = {m.route for m in result.measurements if not m.passed} | {failure.route for failure in result.failures}
    wrong = []
    if failed:
        verb = "does" if len(failed) == 1 else "do"
        wrong.append(
            f"{len(failed)} of {count(len(routes | failed), 'route')} {verb} not agree with {result.reference}"
        )
    if result.guard.failures:
        wrong.append(f"TensorRT would misread {count(len(result.guard.failures), 'graph')}")
    return "; ".join(wrong) + missing


def count(number: int, what: str) -> str:
    """`1 route`, `2 routes`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def worst(result: Verification) -> Iterator[Measurement]:
    """For every route and kind the part nearest to its tolerance, or furthest beyond it."""
    for route in result.routes:
        for kind in KINDS:
            measured = [m for m in result.measurements if (m.route, m.kind) == (route, kind)]
            if measured:
                yield max(measured, key=lambda m: (not m.passed, m.load))


def figure(value: float | None) -> str:
    """An error for people: two digits such as 3.1e-2, or a dash where there is none."""
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def bound(measurement: Measurement) -> str:
    """A tolerance with what it bounds: `scaled ≤ 1e-05`."""
    name = "scaled" if measurement.measure == "largest" else "relative"
    return f"{name} ≤ {measurement.tolerance:.3g}"


def findings(result: Verification) -> list[tuple[str, str]]:
    """What is wrong, by route: what broke down, where values are not finite, else the error furthest beyond its tolerance."""
    found = [(failure.route, failure.what) for failure in (*result.guard.failures, *result.failures)]
    failed = [m for m in worst(result) if not m.passed]
    for route in dict.fromkeys(m.route for m in failed):
        kinds: dict[str, list[str]] = {}
        for m in result.measurements:
            if m.route == route and m.finding:
                kinds.setdefault(m.finding, []).append(m.kind)
        found += [(route, f"{finding} (inputs: {', '.join(names)})") for finding, names in kinds.items()]
        if not kinds:
            m = max((m for m in failed if m.route == route), key=lambda m: m.load)
            found.append((route, f"error {figure(m.error)} exceeds {figure(m.tolerance)} ({m.place})"))
    return found


def guard_line(result: Verification) -> str:
    """What the parser guard found, for people."""
    graphs, wrong = result.guard.graphs, len(result.guard.failures)
    return f"{count(graphs, 'portable graph')}, of which TensorRT would misread {wrong or 'none'}"


def as_plain_values(bundle: Bundle, result: Verification) -> dict[str, Any]:
    """For `--json`."""
    return {
        "bundle": str(bundle.root),
        "passed": result.passed,
        "compared": result.compared,
        "reference": result.reference,
        "images": len(result.case.noise),
        "seed": result.case.seed,
        "guidance": result.case.guidance,
        "measurements": [dataclasses.asdict(m) for m in result.measurements],
        "guard": dataclasses.asdict(result.guard),
        "failures": [dataclasses.asdict(failure) for failure in result.failures],
        "not_run": [dataclasses.asdict(route) for route in result.not_run],
        "sensitivity": {str(block): errors.tolist() for block, errors in result.sensitivity.items()},
    }


def print_table(result: Verification) -> None:
    """The worst part of every route and kind, then what is wrong, what was not run, and the verdict.

    Lines of 80 columns: a route stands above its figures, because its name may be long.
    """
    from rich.text import Text

    from starflow.runtime.plain.terminal import Terminal

    console = Terminal(soft_wrap=True)
    case = result.case
    console.print(
        Text.assemble(
            "reference ",
            (result.reference, "bold"),
            f": {count(len(case.noise), 'image')}, seed {case.seed}, guidance {case.guidance:g}\n",
        )
    )
    columns = ("block", result.subject.unit, "max abs", "scaled", "relative")
    if result.measurements:
        heads = "".join(f"{name:>9}" for name in columns)
        console.print(f"{'inputs':<8}{heads}  worst block, allowed", style="bold")
    route = None
    for m in worst(result):
        if m.route != route:
            console.print(m.route, style="bold cyan")
        route = m.route
        numbers = (str(m.block), str(m.token), figure(m.largest), figure(m.scaled), figure(m.relative))
        verdict = ("ok", "green") if m.passed else ("FAILED", "bold red")
        figures = "".join(f"{number:>9}" for number in numbers)
        console.print(Text.assemble(f"  {m.kind:<6}{figures}  {bound(m):<18}", verdict))
    console.print()
    if result.guard.graphs and not result.guard.failures:
        console.print(f"parser guard: {guard_line(result)}")
    for name, what in findings(result):
        console.print(Text.assemble(("FAILED", "bold red"), f" {name}: {what}"))
    for skipped in result.not_run:
        console.print(Text.assemble(("not run", "yellow"), f" {skipped.route}: {skipped.why}"))
    verdict = ("PASSED", "bold green") if result.passed else ("FAILED", "bold red")
    console.print(Text.assemble(verdict, f" {headline(result)}"))
