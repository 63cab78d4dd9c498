"""Guidance as a caller asks for it, one value for all families."""

from dataclasses import dataclass

from starflow.runtime.plain.errors import UsageError


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans, 2022).

    STARFlow weighs mean and scale together by its ratio rule and takes `weight` and `top_only`. TARFlow extrapolates the log-scale
    and the shift from the unconditional branch and takes all fields except `top_only`. Continuous flows take `weight`.
    """

    weight: float = 0.0  # w >= 0; 0 is no guidance
    top_only: bool = False  # whether to guide the deep block only, although every block is conditioned
    # Whether to guide this output of TARFlow.
    scale: bool = True
    shift: bool = True
    annealed: bool = False  # whether TARFlow's weight grows linearly over the sequence, w * t / (T - 1)

    def __post_init__(self) -> None:
        if not self.weight >= 0 or self.weight == float("inf"):
            raise UsageError(f"guidance {self.weight} is not a weight; give a number >= 0 (0 samples without guidance)")
