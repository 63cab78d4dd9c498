"""Opens files that a user or a bundle names: regular ones only, so that no read waits forever or reads without end."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegularError(OSError):
    """The path names something that is no regular file, or one that is too large."""

    def __str__(self) -> str:
        return str(self.strerror)


def check_regular(path: Path) -> int:
    """The size in bytes of a regular file; links are followed.

    Raises:
        NotRegularError: it is a folder, pipe, socket or device, which are not even opened: that could wait for a writer.
        OSError: there is no such file, or the system refuses to look.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise NotRegularError(None, f"is {kind}, expected a file", str(path))
    return found.st_size


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; errors are those of `check_regular`."""
    check_regular(path)
    # If another program puts a pipe there meanwhile, O_NONBLOCK opens it without waiting, and it is found below.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise NotRegularError(None, "is not a file", str(path))
    return file


def read_text(path: Path, most_bytes: int) -> str:
    """The text of a file in UTF-8, a byte order mark left out.

    Raises:
        NotRegularError: it is no regular file, or has more than `most_bytes`.
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    with open_regular(path) as file:
        too_large = os.fstat(file.fileno()).st_size > most_bytes
        content = b"" if too_large else file.read(most_bytes + 1)  # it may grow meanwhile
    if too_large or len(content) > most_bytes:
        raise NotRegularError(
            None, f"has more than {most_bytes:,} bytes, which is too large for such a file", str(path)
        )
    return content.decode("utf-8-sig")
