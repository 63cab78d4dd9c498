"""The best checkpoint so far, by its figure on the validation part, and when to stop waiting for a better one."""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Best:
    """The step of the best figure so far."""

    lower_is_better: bool
    step: int | None = None
    value: float = math.nan
    waited: int = 0  # evaluations since

    def improves(self, value: float) -> bool:
        """Whether a figure is better than the best one; a figure that is no number never is."""
        if math.isnan(value):
            return False
        return self.step is None or (value < self.value if self.lower_is_better else value > self.value)

    def offer(self, step: int, value: float) -> bool:
        """Count an evaluation; return whether it is the best one."""
        if not self.improves(value):
            self.waited += 1
            return False
        self.step, self.value, self.waited = step, value, 0
        return True

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {name: value for name, value in asdict(self).items() if name != "lower_is_better"}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the state of a run that was stopped."""
        self.step, self.value, self.waited = state["step"], state["value"], state["waited"]
