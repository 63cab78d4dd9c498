"""What guidance is asked for, in one value both samplers understand."""

from dataclasses import dataclass

from starflow.runtime.plain.errors import UsageError


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans, 2022) as the two families apply it.

    STARFlow weighs mean and scale together by its ratio rule and knows `weight` and `top_only`. TARFlow extrapolates
    the log-scale and the shift from the unconditional branch and knows all fields but `top_only`.

    Attributes:
        weight: w >= 0; 0 is no guidance.
        top_only: Guide the top block only, though every block is conditioned.
        scale, shift: Which of TARFlow's outputs are guided.
        annealed: Let TARFlow's weight grow linearly over the sequence, w * t / (T - 1).
    """

    weight: float = 0.0
    top_only: bool = False
    scale: bool = True
    shift: bool = True
    annealed: bool = False

    def __post_init__(self) -> None:
        if not self.weight >= 0 or self.weight == float("inf"):
            raise UsageError(f"guidance {self.weight} is not a weight; give a number >= 0 (0 samples without guidance)")
