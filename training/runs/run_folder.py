"""The folder of a run, for one training at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starflow.runtime.plain.atomic_write import check_output, make_folders
from starflow.runtime.plain.errors import UsageError


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a run's folder, which is made and, if nothing was written into it, removed again.

    The system ends the lock however the process ends. A file system without locks keeps nobody out.

    Raises:
        UsageError: another training is at work there, or the folder cannot be made.
        StarflowError: nothing can be written there.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        make_folders(folder)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be opened ({error.strerror}); name another folder with --out") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(f"{folder}: another training is at work there; wait for it, or use another --out") from None
    except OSError:
        pass
    try:
        check_output(folder / "log.jsonl")
        yield
    finally:
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()  # only if it is empty
        os.close(descriptor)
