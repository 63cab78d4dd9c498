"""The last lines of a run: how many conformance calls passed on each route, and which are not supported.

Tests may run in other processes than the one that writes these lines, so everything is read off their reports.
"""

from collections import Counter

import pytest

from tests.conformance.routes import ASKED_FOR, ROUTES, chosen_routes

outcomes: Counter[tuple[str, str]] = Counter()
unsupported: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    route = dict(report.user_properties).get("route")
    if isinstance(route, str) and (report.when == "call" or report.outcome != "passed"):
        outcomes[route, report.outcome] += 1
        if report.skipped:
            assert isinstance(report.longrepr, tuple)
            call = report.nodeid.partition("[")[2].rstrip("]")
            unsupported.append(f"{call}: {report.longrepr[2].removeprefix('Skipped: ')}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not outcomes:
        return
    terminalreporter.section("conformance")
    for line in unsupported:
        terminalreporter.line(f"not supported yet: {line}")
    for route in ROUTES + ASKED_FOR:
        if route not in chosen_routes(config):
            terminalreporter.line(f"{route}: not run")
            continue
        passed, failed = outcomes[route, "passed"], outcomes[route, "failed"]
        terminalreporter.line(f"{route}: {passed + failed} supported calls, {passed} passed")
