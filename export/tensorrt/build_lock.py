"""One build of a bundle at a time."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starflow.runtime.atomic_write import check_file
from starflow.runtime.build_record import ENGINES
from starflow.runtime.bundle import Bundle
from starflow.runtime.errors import ExportError


@contextmanager
def build_lock(bundle: Bundle, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the bundle's build lock; the system lets go of it however the process ends.

    Args:
        bundle: The bundle.
        waiting: Called once if another build has the lock, before waiting for it to end.

    Raises:
        UsageError: the bundle cannot be written.
        ExportError: its file system has no locks.
    """
    path = bundle.root / ENGINES / ".lock"
    check_file(path)
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise ExportError(f"{path}: cannot be locked ({error.strerror}); build on a local disk") from None
        yield
