import pytest

from starflow.export.verification.tolerances import DEFAULTS, Tolerance, tolerances
from starflow.runtime.plain.errors import UsageError


def test_a_change_replaces_one_value_and_says_so() -> None:
    chosen = tolerances(["fp16.sample=0.05"])
    assert chosen["fp16", "sample"] == Tolerance("relative", 0.05, chosen=True)
    assert {key: value for key, value in chosen.items() if value.chosen} == {
        ("fp16", "sample"): chosen["fp16", "sample"]
    }
    assert tolerances() == DEFAULTS


def test_bfloat16_is_allowed_its_eight_times_coarser_rounding() -> None:
    for kind in ("given", "block", "sample"):
        assert DEFAULTS["bf16", kind].value == pytest.approx(8 * DEFAULTS["fp16", kind].value)


@pytest.mark.parametrize(
    "change", ["fp16=0.1", "fp16.sample", "fp16.sample=", "fp16.sample=-1", "fp16.sample=nan", "x"]
)
def test_what_is_no_tolerance_is_refused(change: str) -> None:
    with pytest.raises(UsageError, match=r"--tolerance"):
        tolerances([change])
