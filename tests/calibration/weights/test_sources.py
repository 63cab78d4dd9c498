"""The variants that quantised ones are made from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from starflow.calibration.weights.sources import EXACT, PLAIN, find_sources
from starflow.runtime.plain.errors import BundleError, UsageError


def bundle(*names: str) -> Any:
    """All that is looked at of a bundle."""
    return SimpleNamespace(root=Path("b"), manifest=SimpleNamespace(variants=[SimpleNamespace(name=n) for n in names]))


BOTH = ("portable-fp32", "portable-fp16", "cpu-fp32")


@pytest.mark.parametrize(
    ("names", "weights", "lowerings", "expected"),
    [
        (BOTH, "int8", None, {"cpu": "cpu-fp32", "portable": "portable-fp16"}),
        (BOTH, "fp8", None, {"portable": "portable-fp16"}),
        (BOTH, "int4", ["portable"], {"portable": "portable-fp16"}),
        (BOTH, "int4", ["portable", "cpu"], {"cpu": "cpu-fp32", "portable": "portable-fp16"}),
        (BOTH, "int8", ["cpu"], {"cpu": "cpu-fp32"}),
        (("cpu-fp32",), "int8", None, {"cpu": "cpu-fp32"}),
        (("portable-fp16",), "int8", None, {"portable": "portable-fp16"}),
    ],
)
def test_one_source_for_each_lowering(
    names: tuple[str, ...], weights: Any, lowerings: Any, expected: dict[str, str]
) -> None:
    found = find_sources(bundle(*names), weights, lowerings, EXACT)
    assert found == expected and list(found) == [lowering for lowering in ("cpu", "portable") if lowering in expected]


def test_plain_rounding_starts_from_half_precision_where_it_must() -> None:
    assert find_sources(bundle("cpu-fp16"), "int8", None, PLAIN) == {"cpu": "cpu-fp16"}
    assert find_sources(bundle("cpu-fp16", "cpu-fp32"), "int8", ["cpu"], PLAIN) == {"cpu": "cpu-fp32"}
    with pytest.raises(BundleError):
        find_sources(bundle("cpu-fp16"), "int8", ["cpu"], EXACT)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match="--lowering cpu: fp8 is for engines; name portable"):
        find_sources(bundle(*BOTH), "fp8", ["portable", "cpu"], EXACT)
    lacks = "b: has no variant portable-fp16; it has cpu-fp32: export it again with --precision fp32 fp16"
    with pytest.raises(BundleError, match=lacks):
        find_sources(bundle("cpu-fp32"), "fp8", None, EXACT)
    with pytest.raises(BundleError, match=lacks):
        find_sources(bundle("cpu-fp32"), "int8", ["cpu", "portable"], EXACT)
    with pytest.raises(BundleError, match="has no variant cpu-fp32 or cpu-fp16; it has portable-fp16"):
        find_sources(bundle("portable-fp16"), "int4", ["cpu"], PLAIN)
