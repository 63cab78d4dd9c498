"""Only regular files are opened, and nothing waits."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from starflow.runtime.plain.regular_file import NotRegularError, open_regular, read_text


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (os.mkfifo, "is a pipe, expected a file"),
        (make_socket, "is a socket, expected a file"),
        (Path.mkdir, "is a folder, expected a file"),
        (link_to("/dev/zero"), "is a device, expected a file"),
    ],
)
def test_what_is_no_file_is_named_at_once(
    make: Callable[[Path], object], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = Path("it")
    make(path)
    for read in (open_regular, lambda path: read_text(path, 10)):
        with pytest.raises(NotRegularError) as caught:
            read(path)
        assert (caught.value.strerror, caught.value.filename) == (found, "it")


@pytest.mark.parametrize("name", ["loop", "x" * 300, "absent"])
def test_names_the_system_refuses(name: str, tmp_path: Path) -> None:
    if name == "loop":
        (tmp_path / name).symlink_to(name)
    with pytest.raises(OSError) as caught:
        open_regular(tmp_path / name)
    assert caught.value.filename == str(tmp_path / name) and caught.value.strerror


def test_a_pipe_that_takes_the_place_of_a_file_meanwhile_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, file = tmp_path / "it", tmp_path / "file"
    os.mkfifo(path)
    file.touch()
    regular, real = file.stat(), Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **how: regular if self == path else real(self, **how))
    with pytest.raises(NotRegularError, match="is not a file"):
        open_regular(path)


def test_text_is_read_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("0123456789")
    assert read_text(path, 10) == "0123456789"
    with pytest.raises(NotRegularError, match="has more than 9 bytes"):
        read_text(path, 9)
