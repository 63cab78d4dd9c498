"""What came of the cases of a part."""

from collections import Counter
from dataclasses import dataclass, field

ALLOWED = ("refused", "same", "weights differ", "another model", "whole", "same disk")  # every other outcome is a fault


@dataclass
class Tally:
    """The outcomes of a part's cases, and the cases that are faults: which, what came of it, and a line about it."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, case: str, outcome: str, told: str) -> None:
        """Count a case."""
        self.counts[outcome] += 1
        if outcome not in ALLOWED:
            self.faults.append((case, outcome, told))
