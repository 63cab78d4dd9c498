"""A folder is replaced so that its name always stands for the old or the new one, kills included."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from starflow.runtime.plain import folder_exchange
from starflow.runtime.plain.folder_exchange import exchanged, find_replaced, replace_folder


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "content").write_text(content)
    return path


@pytest.fixture(params=["at once", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How names change: as this system does it, and as one without renameat2 does."""
    if request.param == "two renames":
        monkeypatch.setattr(folder_exchange, "exchanged", lambda one, other: False)
    return str(request.param)


def test_this_system_exchanges_two_names_at_once(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", "1"), folder(tmp_path / "other", "2")
    assert exchanged(one, other)
    assert (one / "content").read_text() == "2" and (other / "content").read_text() == "1"
    with pytest.raises(FileNotFoundError):
        exchanged(one, tmp_path / "nowhere")


@pytest.mark.usefixtures("way")
def test_the_new_folder_takes_the_name_and_the_old_one_another(tmp_path: Path) -> None:
    replaced = replace_folder(folder(tmp_path / "new", "new"), folder(tmp_path / "name", "old"))
    assert (tmp_path / "name" / "content").read_text() == "new"
    assert (replaced / "content").read_text() == "old" and len(os.listdir(tmp_path)) == 2
    replace_folder(folder(tmp_path / "newer", "newer"), tmp_path / "name")  # while the first is still there
    assert (tmp_path / "name" / "content").read_text() == "newer"


@pytest.mark.parametrize("error", [OSError("disk on fire"), KeyboardInterrupt()])
def test_a_failed_rename_puts_the_old_folder_back(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_exchange, "exchanged", lambda one, other: False)
    new, name = folder(tmp_path / "new", "new"), folder(tmp_path / "name", "old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self == new:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(type(error)):
        replace_folder(new, name)
    assert (name / "content").read_text() == "old"


def test_what_a_kill_left_aside_is_found_again(tmp_path: Path) -> None:
    """The process is killed for real, between its two renames."""
    folder(tmp_path / "new", "new"), folder(tmp_path / "name", "old")
    code = (
        "import os, signal; from pathlib import Path; from starflow.runtime.plain import folder_exchange as module\n"
        "module.exchanged = lambda one, other: False; rename = Path.rename\n"
        "def killing(self, target):\n"
        "    rename(self, target); os.kill(os.getpid(), signal.SIGKILL)\n"
        "Path.rename = killing; module.replace_folder(Path('new'), Path('name'))"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert killed.returncode == -9 and not (tmp_path / "name").exists()
    find_replaced(tmp_path / "name")
    assert (tmp_path / "name" / "content").read_text() == "old"
    find_replaced(tmp_path / "name")  # nothing more to do


def test_readers_always_meet_a_whole_folder(tmp_path: Path) -> None:
    name = folder(tmp_path / "name", "0")
    done = threading.Event()
    missed: list[OSError] = []

    def read() -> None:
        while not done.is_set():
            try:
                assert (name / "content").read_text()
            except OSError as error:
                missed.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(300):
        replace_folder(folder(tmp_path / f"new{number}", str(number)), name)
    done.set()
    for reader in readers:
        reader.join()
    assert missed == []
    assert (name / "content").read_text() == "299"
