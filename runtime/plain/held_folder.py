"""A folder that was opened stays what it was, whatever takes its name meanwhile."""

import contextlib
import fcntl
import os
import shutil
import time
import weakref
from pathlib import Path

DESCRIPTORS = Path("/proc/self/fd")
WAIT_SECONDS = 10.0  # a folder is locked against readers while it changes its name or is removed, which takes less


class HeldFolder:
    """A folder, by an open descriptor. It is not removed as long as somebody holds it.

    On Linux `path` leads through the descriptor: it reaches the folder that was opened even after another one has taken its
    name. Elsewhere `path` is the name, and `is_current` says whether it still leads there.

    Attributes:
        root: The name it was opened by.
        path: Where to read its files.
    """

    def __init__(self, root: Path) -> None:
        """Open a folder.

        Raises:
            OSError: there is none, or it cannot be read.
        """
        self.root = root
        self._descriptor = _open_shared(root)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        through = DESCRIPTORS / str(self._descriptor)
        self.path = through if through.is_dir() else root

    @property
    def is_current(self) -> bool:
        """Whether its name still leads to it."""
        try:
            return os.path.samestat(os.stat(self.root), os.fstat(self._descriptor))
        except OSError:
            return False


def _open_shared(root: Path) -> int:
    """A descriptor with a shared lock, of the folder that has the name once the lock is held."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)
            continue
        except OSError:  # a file system without locks
            return descriptor
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(root), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # replaced before it was locked


def lock_new(path: Path) -> int:
    """Lock a file or folder that was just made, so that no other process takes it for abandoned; the open descriptor.

    Raises:
        FileNotFoundError: another process did so before the lock was held; make it again.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks has no `remove_abandoned` either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.stat(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def release(descriptor: int) -> None:
    """Give up a lock of `lock_new` before its descriptor is closed."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def remove_unless_held(path: Path, *, in_doubt: bool) -> None:
    """Remove a file or folder unless some process holds it.

    Args:
        path: What to remove; it need not exist.
        in_doubt: Whether to remove it where the file system has no locks, which would tell.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    except OSError:
        if in_doubt:
            remove(path)
    else:
        remove(path)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or folder as far as the system lets us."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
