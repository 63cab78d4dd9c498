"""Guidance as a caller asks for it, one value for all families."""

from collections.abc import Iterable
from dataclasses import dataclass

from starflow.runtime.plain.errors import UsageError

WHOLE_WAY = (0.0, 1.0)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans, 2022).

    STARFlow weighs mean and scale together by its ratio rule and takes `weight` and `top_only`. TARFlow extrapolates the log-scale
    and the shift from the unconditional branch and takes all fields except `top_only`. Continuous flows take `weight` and `interval`.

    Raises:
        UsageError: the weight or a factor is negative or not finite, or the interval is empty or not within 0 and 1.
    """

    weight: float = 0.0  # w >= 0; 0 is no guidance
    top_only: bool = False  # whether to guide the deep block only, although every block is conditioned
    # Whether to guide this output of TARFlow.
    scale: bool = True
    shift: bool = True
    annealed: bool = False  # whether TARFlow's weight grows linearly over the sequence, w * t / (T - 1)
    # Factors >= 0 of the weight, one for each flow block of an autoregressive flow, from block 0 (the last to run) to the deep
    # block; empty means 1 for all.
    schedule: tuple[float, ...] = ()
    # Times a < b between which a continuous flow is guided: in a step that starts at t, a <= t < b. Time 0 is noise and 1 data.
    # (Kynkäänniemi et al., 2024, arXiv 2404.07724, limit guidance to the middle of the way.)
    interval: tuple[float, float] = WHOLE_WAY

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise UsageError(f"guidance {self.weight} is not a weight; give a number >= 0 (0 samples without guidance)")
        for factor in self.schedule:
            if not 0 <= factor < float("inf"):
                raise UsageError(f"guidance schedule: {factor} is not a factor of the weight; give numbers >= 0")
        start, end = self.interval
        if not 0 <= start < end <= 1:
            raise UsageError(
                f"guidance interval {start:g} {end:g}: give two times from 0 (noise) to 1 (data), the first before the second"
            )

    def weight_at(self, block: int, blocks: int) -> float:
        """The weight at one of so many flow blocks."""
        if self.top_only and block != blocks - 1:
            return 0.0
        return self.weight * (self.schedule[block] if self.schedule else 1.0)

    def weight_at_time(self, time: float) -> float:
        """The weight in a step of a continuous flow that starts at `time`."""
        start, end = self.interval
        return self.weight if start <= time < end else 0.0


# One value for all images, or one for each.
GuidanceOfImages = float | Guidance | Iterable[float | Guidance]


def each_guidance(given: GuidanceOfImages, count: int) -> tuple[Guidance, ...]:
    """The guidance of each of N images: one value is for all of them.

    Raises:
        UsageError: there are neither one nor N, or one is no guidance.
    """
    each = [_guidance(value) for value in (given if isinstance(given, Iterable) else [given])]
    if len(each) not in (1, count):
        raise UsageError(f"{len(each)} guidance weights for {count} images; give one for all images, or one for each")
    return tuple(each * count if len(each) == 1 else each)


def _guidance(value: object) -> Guidance:
    if isinstance(value, Guidance):
        return value
    try:
        return Guidance(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UsageError(f"guidance {value!r} is not a weight; give a number >= 0, or a Guidance") from None
