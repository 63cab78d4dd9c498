"""What native libraries write to the process's standard error by themselves."""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_one_at_a_time = threading.Lock()


@contextmanager
def panics_unprinted() -> Iterator[None]:
    """Hold standard error back while the context lasts: printed at its end, or dropped if it ends in an exception.

    A library in Rust prints a panic with its backtrace before Python sees the exception, which says the same in one line.
    """
    with _one_at_a_time, tempfile.TemporaryFile() as held:
        if sys.stderr:
            sys.stderr.flush()
        before = os.dup(_STDERR)
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(before, _STDERR)
            os.close(before)
        held.seek(0)
        if text := held.read():
            os.write(_STDERR, text)
