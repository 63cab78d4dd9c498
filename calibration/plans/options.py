"""What the calibration of a plan is asked for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PlanOptions:
    """Options of every family; `widths` and `fixed` are for decode plans."""

    budget: float = 1e-3  # largest relative error of finished samples
    repetitions: int = 5
    widths: tuple[int, ...] = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # numbers of tokens in a pass to try
    # Whether the number of passes must be fixed beforehand, for devices that should not wait for the host; plans for
    # a GPU are always fixed.
    fixed: bool = False
