"""Files and folders that appear whole or not at all.

Content is written beside its destination and renamed into place; an error, Ctrl-C or a full disk leaves nothing behind.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from starflow.runtime.plain.errors import StarflowError, UsageError
from starflow.runtime.plain.folder_exchange import find_replaced, replace_folder
from starflow.runtime.plain.own_folder import FolderKind, check_replaceable

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_file(destination: Path) -> None:
    """Say before long work whether a file could be written; creates nothing.

    Raises:
        UsageError: it could not.
    """
    if destination.is_dir():
        raise UsageError(f"{destination}: is a folder; name a file")
    if destination.exists() and not destination.is_file():  # a new file would take the place of the device itself
        raise UsageError(f"{destination}: is a device, pipe or socket; name a file")
    _check_parent(destination)


def _check_parent(destination: Path) -> Path:
    parents = destination.absolute().parents
    nearest = next(parent for parent in parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UsageError(f"{destination}: {nearest} is not a folder you can write to; name another")
    return parents[0]


@contextmanager
def _beside(destination: Path) -> Iterator[Path]:
    """A free name beside `destination`, whose folder is made.

    Raises:
        UsageError: the folder cannot be written.
        StarflowError: the system refuses to write.
    """
    parent = _check_parent(destination)
    temporary = parent / f".{destination.name}.{secrets.token_hex(4)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except OSError as error:
        if isinstance(error.filename, str):
            refused = Path(error.filename)
            if not refused.is_relative_to(temporary) and not parent.is_relative_to(refused):
                raise  # something else that was read or written meanwhile
        raise StarflowError(f"{destination}: cannot be written ({error.strerror or error})") from error


@contextmanager
def atomic_file(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `destination`; on success it replaces `destination`, on any error it is removed.

    Raises:
        UsageError: the folder cannot be created or written.
        StarflowError: the system refuses to write: the disk is full, or fails.
    """
    destination = Path(destination)
    check_file(destination)
    with _beside(destination) as temporary:
        try:  # before the file is there: Ctrl-C may come right after
            temporary.touch(mode=0o600, exist_ok=False)
            yield temporary
            # A finished result gets the permissions any new file would have.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(destination)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(destination: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; errors are those of `atomic_file`."""
    with atomic_file(destination) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_array(destination: str | os.PathLike[str], array: "NDArray") -> None:
    """Write a .npy file, whole or not at all; errors are those of `atomic_file`."""
    import numpy as np

    with atomic_file(destination) as temporary, temporary.open("wb") as file:
        np.save(file, array)


@contextmanager
def atomic_folder(
    destination: str | os.PathLike[str], kind: FolderKind, *, replace: bool, source: Path | None = None
) -> Iterator[Path]:
    """Yield a temporary folder beside `destination`; on success it takes that name, on any error it is removed.

    An existing folder and its successor change names at once, see `replace_folder`: whoever opens `destination` meets one of
    the two, whole.

    Args:
        destination: Folder to create.
        kind: What is written. Only an empty folder, or one of the same kind, gives way to it.
        replace: Whether an existing folder gives way.
        source: What is read meanwhile, which must not lie in an existing `destination`.

    Raises:
        UsageError: `destination` exists and may not be replaced, or its parent cannot be written.
        StarflowError: the system refuses to write: the disk is full, or fails.
    """
    destination = Path(destination)
    find_replaced(destination)
    if destination.is_symlink():
        raise UsageError(f"{destination}: is a link; name the folder that it leads to")
    if destination.exists():
        if not destination.is_dir() or not replace:
            what = "folder" if destination.is_dir() else "file"
            raise UsageError(f"{destination}: a {what} of that name exists; remove it or pass --force (folders only)")
        check_replaceable(destination, kind, source)
    with _beside(destination) as temporary:
        try:
            temporary.mkdir(mode=0o700)
            yield temporary
            temporary.chmod(0o755)
            if destination.exists():
                check_replaceable(destination, kind, source)  # it may be another one by now
                replace_folder(temporary, destination)
            else:
                temporary.replace(destination)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
