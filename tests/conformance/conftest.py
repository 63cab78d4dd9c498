"""`--vectors DIR` chooses the recorded vectors; the last lines of a run count what passed and name what is not supported."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.cases import find_cases

DEFAULT_VECTORS = Path(__file__).resolve().parent.parent / "data" / "conformance"
outcomes: Counter[tuple[str, str]] = Counter()
unsupported: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vectors", type=Path, default=DEFAULT_VECTORS, help="folder of recorded conformance vectors")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each call of each case, and for sampling calls one more for each lowering."""
    if "call_id" not in metafunc.fixturenames:
        return
    vectors = metafunc.config.getoption("vectors", default=DEFAULT_VECTORS)
    cases = find_cases(vectors)
    if not cases:
        raise pytest.UsageError(f"--vectors {vectors}: no case (a folder with config.json) below it")
    parameters = []
    for case in cases:
        for index, call in enumerate(case.config["calls"]):
            routes = ("torch", "portable", "cpu") if call["op"] == "reverse" else ("torch",)
            parameters += [pytest.param(case, index, r, id=f"{case.name}-{call['name']}-{r}") for r in routes]
    metafunc.parametrize(("case", "call_id", "route"), parameters)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    route: Any = parameters.get("route")
    if route and (report.when == "call" or report.outcome != "passed"):
        outcomes[route, report.outcome] += 1
        if report.skipped:
            unsupported.append(
                f"{item.name.partition('[')[2].rstrip(']')}: {report.longrepr[2].removeprefix('Skipped: ')}"
            )
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not outcomes:
        return
    terminalreporter.section("conformance")
    for line in unsupported:
        terminalreporter.line(f"not supported yet: {line}")
    for route in ("torch", "portable", "cpu"):
        passed, failed = outcomes[route, "passed"], outcomes[route, "failed"]
        terminalreporter.line(f"{route}: {passed + failed} supported calls, {passed} passed")
