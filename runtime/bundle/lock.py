"""One process at a time where a bundle is changed."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from starflow.runtime.plain.atomic_write import check_file
from starflow.runtime.plain.errors import BundleError


@contextmanager
def bundle_lock(root: Path, name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold one of a bundle's locks; the system lets go of it however the process ends.

    Args:
        root: The bundle's folder.
        name: `work` for builds and calibrations, which take minutes; `manifest` while manifest.json is replaced.
        waiting: Called once if another process has the lock, before waiting for it.

    Raises:
        UsageError: the bundle cannot be written.
        BundleError: its file system has no locks.
    """
    path = root / f".{name}.lock"
    check_file(path)
    with path.open("wb") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise BundleError(f"{path}: cannot be locked ({error.strerror}); copy the bundle to a local disk") from None
        yield
