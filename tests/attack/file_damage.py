"""Something else in the place of a file: a link, a folder, a fifo, a device, another file, nothing."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from numpy.random import Generator


def _fill(folder: Path) -> None:
    folder.mkdir()
    (folder / folder.name).write_bytes(b"x")


def replace_file(draw: Generator, path: Path, others: list[Path]) -> str:
    """Put something else there; return what it is. `others` are files and folders of the same artifact."""
    other = others[draw.integers(len(others))]
    kinds: list[tuple[str, Callable[[], object]]] = [
        ("nothing", lambda: None),
        ("an empty file", lambda: path.write_bytes(b"")),
        ("an empty folder", lambda: path.mkdir()),
        ("a folder with a file", lambda: _fill(path)),
        ("a link to itself", lambda: path.symlink_to(path.name)),
        ("a link to nothing", lambda: path.symlink_to("missing")),
        ("a link out of it", lambda: path.symlink_to("/etc/passwd")),
        ("a link to a device", lambda: path.symlink_to("/dev/zero")),
        ("a link to its folder", lambda: path.symlink_to(".")),
        (f"a link to {other.name}", lambda: path.symlink_to(other)),
        (f"a copy of {other.name}", lambda: shutil.copyfile(other, path) if other.is_file() else None),
        ("a fifo", lambda: os.mkfifo(path)),
        ("a file of a gigabyte of nothing", lambda: _sparse(path, 2**30)),
        ("a file of an exabyte of nothing", lambda: _sparse(path, 2**60)),
    ]
    name, make = kinds[draw.integers(len(kinds))]
    if other == path or not path.exists():
        return "left as it is"
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    try:
        make()
    except OSError as error:  # what this system cannot make
        return f"{name}, which cannot be made: {error.strerror}"
    return name


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
