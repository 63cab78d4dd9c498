"""Reads text files line by line, so that a file of any size takes no more memory than what is made of it."""

import os
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

from starflow.runtime.plain.limits import MOST_LINES, MOST_TEXT_BYTES
from starflow.runtime.plain.regular_file import NotRegularError, open_regular


def text_lines(path: Path, most: int) -> Iterator[str]:
    """The lines of a file in UTF-8, each with its end, a byte order mark left out.

    Args:
        path: The file.
        most: Characters of one line, its end left out.

    Raises:
        NotRegularError: it is no regular file, is too large, or has a longer line.
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    with open_regular(path) as file, TextIOWrapper(file, "utf-8-sig", newline="") as text:
        if os.fstat(file.fileno()).st_size > MOST_TEXT_BYTES:
            raise NotRegularError(None, f"has more than {MOST_TEXT_BYTES:,} bytes", str(path))
        number = 0
        while line := text.readline(most + 2):
            number += 1
            if number > MOST_LINES:
                raise NotRegularError(None, f"has more than {MOST_LINES:,} lines", str(path))
            if len(line.rstrip("\r\n")) > most:
                raise NotRegularError(None, f"has more than {most:,} characters in line {number:,}", str(path))
            yield line
