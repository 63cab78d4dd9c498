"""The budget of a calibration: the largest relative error of whole samples."""

from starflow.runtime.plain.errors import UsageError

MOST = 1e6  # samples of another model differ by 1.4; the square of a budget has to be a number, too


def check_budget(budget: float) -> None:
    """UsageError unless it is an error that samples can have."""
    if not 0 < budget <= MOST:
        raise UsageError(f"--budget {budget:g}: give a relative error above 0, such as 0.005, and at most {MOST:,.0f}")
