"""How far a build has come, and how to stop it."""

import threading
from dataclasses import dataclass
from typing import Any

from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.plain.progress import Report

PARTS = 100  # of a build, as reported


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildMonitor:
    """Follows the phases of one build, which nest: a step of one is a whole phase of the next.

    `report` is told (parts done of `PARTS`, `PARTS`, name of the phase) whenever the number changes.
    """

    def __init__(self, flavour: Flavour, report: Report) -> None:
        self._report = report
        self._cancelled = threading.Event()
        self._lock = threading.Lock()  # TensorRT may call from several threads
        self._phases: dict[str, _Phase] = {}
        self._reported = -1

        # A subclass of this flavour's own class, so it cannot exist before a flavour is chosen.
        class Interface(flavour.trt.IProgressMonitor):  # type: ignore[name-defined]
            phase_start = staticmethod(self.start)
            step_complete = staticmethod(self.step)
            phase_finish = staticmethod(self.finish)

        self.interface: Any = Interface()  # for the builder's configuration; it must outlive the build

    def cancel(self) -> None:
        """Let the build end at its next step."""
        self._cancelled.set()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, index: int) -> bool:
        """Note a finished step; False asks TensorRT to stop."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = index + 1
                self._tell(name)
        return not self._cancelled.is_set()

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def _tell(self, name: str) -> None:
        parts = int(PARTS * self._within(None))
        # A phase may run anew within a step of its parent; a bar only goes forward.
        if parts > self._reported:
            self._reported = parts
            self._report(parts, PARTS, name)

    def _within(self, parent: str | None) -> float:
        """The share done of the phase that is furthest among those within another one, or of all."""
        inner = ((name, phase) for name, phase in self._phases.items() if phase.parent == parent)
        return max((min((phase.done + self._within(name)) / phase.steps, 1.0) for name, phase in inner), default=0.0)
