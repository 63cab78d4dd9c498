"""`--vectors DIR` chooses the recorded vectors, `--through ROUTE,...` what they run through.

The last lines of a run count what passed and name what is not supported.
"""

import argparse
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.cases import find_cases

DEFAULT_VECTORS = Path(__file__).resolve().parent.parent / "data" / "conformance"
# PyTorch; ONNX Runtime on either lowering; the portable lowering through TensorRT's parser and the network interpreter.
ROUTES = ("torch", "portable", "cpu", "network")
# What an operation runs through; all others run through PyTorch only.
OPERATION_ROUTES = {"reverse": ROUTES, "score_denoise": ("torch", "portable"), "denoiser": ("torch", "portable")}
PARSER = "tensorrt_rtx"
outcomes: Counter[tuple[str, str]] = Counter()
unsupported: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vectors", type=Path, default=DEFAULT_VECTORS, help="folder of recorded conformance vectors")
    parser.addoption(
        "--through",
        type=_routes,
        help=f"what recorded calls run through, one or more of {','.join(ROUTES)}; all that are installed by default",
    )


def _routes(text: str) -> tuple[str, ...]:
    routes = tuple(text.split(","))
    if not set(routes) <= set(ROUTES):
        raise argparse.ArgumentTypeError(f"{text!r}: give one or more of {','.join(ROUTES)}, separated by commas")
    return routes


def _chosen(config: pytest.Config) -> tuple[str, ...]:
    """The routes asked for; by default those whose software is here."""
    asked = config.getoption("through", default=None)
    return asked or tuple(route for route in ROUTES if route != "network" or find_spec(PARSER))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each call of each case, and for sampling and denoising one for each route."""
    if "call_id" not in metafunc.fixturenames:
        return
    vectors = metafunc.config.getoption("vectors", default=DEFAULT_VECTORS)
    cases = find_cases(vectors)
    if not cases:
        raise pytest.UsageError(f"--vectors {vectors}: no case (a folder with config.json) below it")
    chosen = _chosen(metafunc.config)
    parameters = []
    for case in cases:
        for index, call in enumerate(case.config["calls"]):
            routes = [route for route in chosen if route in OPERATION_ROUTES.get(call["op"], ("torch",))]
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not outcomes:
        return
    terminalreporter.section("conformance")
    for line in unsupported:
        terminalreporter.line(f"not supported yet: {line}")
    for route in ROUTES:
        if route not in _chosen(config):
            terminalreporter.line(f"{route}: not run")
            continue
        passed, failed = outcomes[route, "passed"], outcomes[route, "failed"]
        terminalreporter.line(f"{route}: {passed + failed} supported calls, {passed} passed")
