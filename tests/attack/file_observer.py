"""Every operation on files below a folder, seen before it happens: counted, refused, or the last thing before a kill.

The C library's functions are observed (file_observer.c, compiled with `cc` and preloaded), so it does not matter which library
writes. The process has to be started anew with it: see `restart_observed`.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
VARIABLE = "LD_PRELOAD"


@dataclass(frozen=True)
class Operation:
    """One operation that is about to happen.

    Attributes:
        kind: create, truncate, write, resize, sync, rename, exchange, link, unlink, mkdir, rmdir, chmod or read.
        path: What it works on; of a rename or link, what has the name now.
        second: The other name of a rename, exchange or link.
        size: Bytes of a write.
    """

    kind: str
    path: str
    second: str
    size: int

    @property
    def changes(self) -> bool:
        """Whether it changes what is on the disk."""
        return self.kind != "read"


Observer = Callable[[Operation], int]
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_longlong)


def can_observe() -> bool:
    """Whether this machine can compile and preload the observer."""
    return sys.platform == "linux" and shutil.which("cc") is not None


def restart_observed(folder: Path) -> None:
    """Start this program again, with the observer; returns where it already runs with it.

    Args:
        folder: Where the compiled observer goes.
    """
    if "file_observer" in os.environ.get(VARIABLE, ""):
        return
    library = folder / "file_observer.so"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    os.environ[VARIABLE] = str(library)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(os.environ[VARIABLE])


@contextmanager
def observing(folder: Path, observer: Observer) -> Iterator[None]:
    """Ask `observer` before every operation below `folder`; it returns 0, or the errno with which the operation fails."""

    def asked(kind: bytes, path: bytes, second: bytes, size: int) -> int:
        return observer(Operation(kind.decode(), os.fsdecode(path), os.fsdecode(second), size))

    callback = _CALLBACK(asked)
    _library().observe_files(os.fsencode(folder.resolve()), callback)
    try:
        yield
    finally:
        _library().observe_files(b"", _CALLBACK())
