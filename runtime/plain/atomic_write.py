"""Files and folders that appear whole or not at all.

Content is written beside its destination and renamed into place; an error, Ctrl-C or a full disk leaves nothing behind.
"""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from starflow.runtime.plain.errors import StarflowError, UsageError
from starflow.runtime.plain.folder_exchange import abandoned_name, find_replaced, replace_folder
from starflow.runtime.plain.held_folder import lock_new, release, remove, remove_unless_held
from starflow.runtime.plain.own_folder import FolderKind, check_replaceable

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP}  # what systems say where there are no hard links


def check_output(destination: Path) -> None:
    """See before long work that a file can be written, by trying; nothing stays.

    Raises:
        UsageError: the folder cannot be created or written.
        StarflowError: the system refuses to write.
    """
    check_file(destination)
    _try_beside(destination)


def check_file(destination: Path) -> None:
    """Say whether a file could be written, as far as can be told without writing.

    Raises:
        UsageError: it could not.
    """
    if destination.is_dir():
        raise UsageError(f"{destination}: is a folder; name a file")
    if destination.exists() and not destination.is_file():  # a new file would take the place of the device itself
        raise UsageError(f"{destination}: is a device, pipe or socket; name a file")
    _check_parent(destination)


def _check_parent(destination: Path) -> Path:
    nearest = _nearest_folder(destination)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UsageError(f"{destination}: {nearest} is not a folder you can write to; name another")
    return destination.absolute().parent


def _try_beside(destination: Path) -> None:
    """Make a file such as those that `_beside` makes, in the nearest folder that exists, and remove it; and earlier ones."""
    beside = _nearest_folder(destination) / destination.name
    remove_abandoned(beside)
    trial = abandoned_name(beside)
    try:
        _touch(trial)
        trial.unlink(missing_ok=True)  # another process may have taken it for abandoned
    except OSError as error:
        raise StarflowError(f"{destination}: cannot be written ({error.strerror})") from None


def _nearest_folder(destination: Path) -> Path:
    """The nearest of the folders above that exists; or a file, or a link to nothing, that is in its place."""
    return next(parent for parent in destination.absolute().parents if os.path.lexists(parent))


@contextmanager
def _beside(destination: Path, make: Callable[[Path], None]) -> Iterator[tuple[Path, int]]:
    """A new file or folder beside `destination`, and the descriptor that keeps other processes from taking it for abandoned.

    What killed processes left under such names is removed first, and what is left at the end.

    Raises:
        UsageError: the folder cannot be written.
        StarflowError: the system refuses to write.
    """
    parent = _check_parent(destination)
    temporary = abandoned_name(destination)
    descriptor = None
    try:
        try:
            make_folders(parent)
            remove_abandoned(destination)
            while descriptor is None:
                make(temporary)
                with contextlib.suppress(FileNotFoundError):
                    descriptor = lock_new(temporary)
            yield temporary, descriptor
        except OSError as error:
            if isinstance(error.filename, str):
                refused = Path(error.filename)
                if not refused.is_relative_to(temporary) and not parent.is_relative_to(refused):
                    raise  # something else that was read or written meanwhile
            raise StarflowError(f"{destination}: cannot be written ({error.strerror or error})") from error
    finally:
        if descriptor is None:
            remove(temporary)
        else:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(temporary), os.fstat(descriptor)):  # it did not take its place
                    remove(temporary)
            os.close(descriptor)


def remove_abandoned(destination: Path) -> None:
    """Remove what killed processes left when they wrote `destination`, and what was replaced while somebody read it."""
    name = re.compile(rf"\.{re.escape(destination.name)}\.[0-9a-f]{{8}}")
    with contextlib.suppress(OSError):
        for entry in os.listdir(destination.parent):
            if name.fullmatch(entry):
                remove_unless_held(destination.parent / entry, in_doubt=False)


@contextmanager
def atomic_file(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `destination`; on success it replaces `destination`, on any error it is removed.

    The content is on disk before the name is: after a power failure `destination` is the old file or the new one, whole.

    Raises:
        UsageError: the folder cannot be created or written.
        StarflowError: the system refuses to write: the disk is full, or fails.
    """
    destination = Path(destination)
    check_file(destination)
    with _beside(destination, _touch) as (temporary, _):
        yield temporary
        sync(temporary)
        temporary.replace(destination)
        sync(destination.parent)


def _touch(path: Path) -> None:
    path.touch(exist_ok=False)


def make_folders(path: Path) -> None:
    """Create a folder and those above it, where they are missing, so that they survive a power failure.

    Raises:
        OSError: the system refuses.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to its disk.

    Raises:
        OSError: the disk is full, or fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(destination: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; errors are those of `atomic_file`."""
    with atomic_file(destination) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_new_text(destination: str | os.PathLike[str], text: str) -> bool:
    """Write a text file in UTF-8, whole or not at all, unless there is one; of several processes the first one writes.

    On a file system without hard links, which some network mounts are, the last one may write.

    Returns:
        Whether it was written. Errors are those of `atomic_file`.
    """
    destination = Path(destination)
    check_file(destination)
    with _beside(destination, _touch) as (temporary, _):
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        try:
            os.link(temporary, destination)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if destination.exists():
                return False
            temporary.replace(destination)
        sync(destination.parent)
    return True


def write_array(destination: str | os.PathLike[str], array: "NDArray") -> None:
    """Write a .npy file, whole or not at all; errors are those of `atomic_file`."""
    import numpy as np

    with atomic_file(destination) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def check_output_folder(destination: Path, kind: FolderKind, *, replace: bool, source: Path | None = None) -> None:
    """See before long work that `atomic_folder` can write a folder; arguments and errors are the same."""
    _check_folder(destination, kind, replace=replace, source=source)
    _check_parent(destination)
    _try_beside(destination)


def _check_folder(destination: Path, kind: FolderKind, *, replace: bool, source: Path | None) -> None:
    find_replaced(destination)
    if destination.is_symlink():
        raise UsageError(f"{destination}: is a link; name the folder that it leads to")
    if destination.exists():
        if not destination.is_dir() or not replace:
            what = "folder" if destination.is_dir() else "file"
            raise UsageError(f"{destination}: a {what} of that name exists; remove it or pass --force (folders only)")
        check_replaceable(destination, kind, source)


@contextmanager
def atomic_folder(
    destination: str | os.PathLike[str], kind: FolderKind, *, replace: bool, source: Path | None = None
) -> Iterator[Path]:
    """Yield a temporary folder beside `destination`; on success it takes that name, on any error it is removed.

    An existing folder and its successor change names at once, see `replace_folder`: whoever opens `destination` meets one of
    the two, whole. A folder that somebody reads, see `HeldFolder`, stays under a hidden name until the next command that writes
    `destination`. As with `atomic_file`, the content is on disk before the name is.

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
    _check_folder(destination, kind, replace=replace, source=source)
    with _beside(destination, Path.mkdir) as (temporary, lock):
        yield temporary
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
        if destination.exists():
            check_replaceable(destination, kind, source)  # it may be another one by now
            replaced = replace_folder(temporary, destination)
            release(lock)  # readers wait for it
            sync(destination.parent)
            remove_unless_held(replaced, in_doubt=True)
        else:
            temporary.replace(destination)
            sync(destination.parent)
