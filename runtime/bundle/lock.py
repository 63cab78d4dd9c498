"""Locks: only one process at a time may change a bundle."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from starflow.runtime.plain.atomic_write import check_file
from starflow.runtime.plain.errors import BundleError


@contextmanager
def bundle_lock(root: Path, name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock of a bundle. The system releases it however the process ends.

    Args:
        root: The bundle's folder.
        name: `work` for builds and calibrations, which take minutes, or `manifest` while manifest.json is replaced.
        waiting: Called once before waiting, if another process holds the lock.

    Raises:
        UsageError: the bundle cannot be written.
        BundleError: the file system has no locks.
    """
    path = root / f".{name}.lock"
    check_file(path)
    with _opened(path) as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise BundleError(f"{path}: cannot be locked ({error.strerror}); copy the bundle to a local disk") from None
        yield


def _opened(path: Path) -> BinaryIO:
    """A lock's file, made if it is not there. A link is refused: a bundle from elsewhere may name any file by it."""
    try:
        return open(path, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BundleError(f"{path}: is a link, expected a file; remove it") from None
        raise
