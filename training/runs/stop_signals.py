"""Ctrl-C and SIGTERM as a wish to stop, which a run grants after its step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM fill the list, instead of ending the process; the second one ends it."""
    stops: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if stops:  # asked twice: do not wait for the step to end
            raise KeyboardInterrupt
        stops.append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
