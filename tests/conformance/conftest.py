"""`--vectors DIR` chooses the recorded vectors, `--through ROUTE,...` what they run through."""

import argparse
from pathlib import Path

import pytest

from tests.conformance.cases import find_cases
from tests.conformance.routes import ASKED_FOR, OPERATION_ROUTES, ROUTES, chosen_routes

DEFAULT_VECTORS = Path(__file__).resolve().parent.parent / "data" / "conformance"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vectors", type=Path, default=DEFAULT_VECTORS, help="folder of recorded conformance vectors")
    parser.addoption(
        "--through",
        type=_routes,
        help=f"what recorded calls run through, one or more of {','.join(ROUTES + ASKED_FOR)}; by default all but cpp that are installed",
    )


def _routes(text: str) -> tuple[str, ...]:
    routes = tuple(text.split(","))
    if not set(routes) <= set(ROUTES + ASKED_FOR):
        known = ",".join(ROUTES + ASKED_FOR)
        raise argparse.ArgumentTypeError(f"{text!r}: give one or more of {known}, separated by commas")
    return routes


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each call of each case, and for sampling and denoising one for each route."""
    if "call_id" not in metafunc.fixturenames:
        return
    vectors = metafunc.config.getoption("vectors", default=DEFAULT_VECTORS)
    cases = find_cases(vectors)
    if not cases:
        raise pytest.UsageError(f"--vectors {vectors}: no case (a folder with config.json) below it")
    chosen = chosen_routes(metafunc.config)
    parameters = []
    for case in cases:
        for index, call in enumerate(case.config["calls"]):
            routes = [route for route in chosen if route in OPERATION_ROUTES.get(call["op"], ("torch",))]
            parameters += [pytest.param(case, index, r, id=f"{case.name}-{call['name']}-{r}") for r in routes]
    metafunc.parametrize(("case", "call_id", "route"), parameters)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The route goes into the reports, which `summary` counts."""
    if isinstance(item, pytest.Function) and hasattr(item, "callspec") and "route" in item.callspec.params:
        item.user_properties.append(("route", item.callspec.params["route"]))
