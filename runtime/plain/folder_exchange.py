"""A folder takes the place of another one, so that at any time one of the two stands under the name."""

import contextlib
import ctypes
import errno
import os
import secrets
from pathlib import Path

RENAME_EXCHANGE = 2  # linux/fs.h
AT_FDCWD = -100  # fcntl.h
NOT_SUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}


def replace_folder(folder: Path, destination: Path) -> Path:
    """Give `folder` the name of an existing folder; return the name that this one has now.

    Where the system cannot exchange two names at once, the old folder steps aside under a name by which
    `find_replaced` brings it back if the process dies in between.
    """
    if exchanged(folder, destination):
        return folder
    aside = _aside(destination)
    if aside.exists():  # somebody still read it after the last replacement
        aside.rename(abandoned_name(destination))
    try:
        destination.rename(aside)
        folder.rename(destination)
    except BaseException:
        find_replaced(destination)
        raise
    return aside


def find_replaced(destination: Path) -> None:
    """Bring back a folder whose replacement was killed between two renames; nothing happens where there is none."""
    aside = _aside(destination)
    if os.path.isdir(aside) and not os.path.lexists(destination):  # False also for a name that is too long
        with contextlib.suppress(OSError):  # not ours to write, or another process was first
            aside.rename(destination)


def exchanged(one: Path, other: Path) -> bool:
    """Swap the names of two folders at once (renameat2, RENAME_EXCHANGE); False where the system cannot.

    Raises:
        OSError: it can, and refuses.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in NOT_SUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(other))


def abandoned_name(destination: Path) -> Path:
    """A free name beside `destination`, of the form that `atomic_write.remove_abandoned` looks for."""
    return destination.with_name(f".{destination.name}.{secrets.token_hex(4)}")


def _aside(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.replaced")
