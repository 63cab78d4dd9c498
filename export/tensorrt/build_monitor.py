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

    Args:
        report: Told (parts done of `PARTS`, `PARTS`, name of the phase) whenever the number changes.

    Attributes:
        interface: The `trt.IProgressMonitor` for the builder's configuration; it must outlive the build.
    """

    def __init__(self, flavour: Flavour, report: Report) -> None:
        self._report = report
        self._cancelled = threading.Event()
        self._lock = threading.Lock()  # TensorRT may call from several threads
        self._phases: dict[str, _Phase] = {}
        self._reported = -1
        self.interface = _interface(flavour, self)

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
        parts = int(
            PARTS * max((self._share(top) for top, phase in self._phases.items() if phase.parent is None), default=0)
        )
        # A phase may run anew within a step of its parent; a bar only goes forward.
        if parts > self._reported:
            self._reported = parts
            self._report(parts, PARTS, name)

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        inner = max((self._share(child) for child, other in self._phases.items() if other.parent == name), default=0.0)
        return min((phase.done + inner) / phase.steps, 1.0)


def _interface(flavour: Flavour, monitor: BuildMonitor) -> Any:
    # A subclass of this flavour's own class, so it cannot exist before a flavour is chosen.
    class Interface(flavour.trt.IProgressMonitor):  # type: ignore[name-defined]
        phase_start = staticmethod(monitor.start)
        step_complete = staticmethod(monitor.step)
        phase_finish = staticmethod(monitor.finish)

    return Interface()
