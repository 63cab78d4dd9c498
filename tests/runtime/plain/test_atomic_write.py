"""Results appear whole or not at all."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from starflow.runtime.plain.atomic_write import (
    atomic_file,
    atomic_folder,
    check_output,
    check_output_folder,
    remove_abandoned,
    write_new_text,
)
from starflow.runtime.plain.errors import StarflowError, UsageError
from starflow.runtime.plain.own_folder import BUNDLE


class Stopped(BaseException):
    """Stands for Ctrl-C: not an `Exception`, so a handler for `Exception` alone would leave litter."""


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_of_many_who_write_a_new_file_one_does(tmp_path: Path) -> None:
    destination, wrote = tmp_path / "new" / "record.json", []
    start = threading.Barrier(16)

    def write(text: str) -> None:
        start.wait()
        if write_new_text(destination, text):
            wrote.append(text)

    writers = [threading.Thread(target=write, args=[f"text {number}" * 1000]) for number in range(16)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert wrote == [destination.read_text()]
    assert names(destination.parent) == ["record.json"]


def test_a_new_file_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, destination: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(destination))

    monkeypatch.setattr(os, "link", refuse)
    assert write_new_text(tmp_path / "record.json", "first")
    assert not write_new_text(tmp_path / "record.json", "second")
    assert (tmp_path / "record.json").read_text() == "first" and names(tmp_path) == ["record.json"]


def test_file_appears_only_when_finished(tmp_path: Path) -> None:
    destination = tmp_path / "new" / "folder" / "result.json"
    with atomic_file(destination) as temporary:
        temporary.write_text("whole")
        assert not destination.exists()
        assert temporary.parent == destination.parent, "a rename is atomic only within one file system"
    assert destination.read_text() == "whole"
    assert names(destination.parent) == ["result.json"]


@pytest.mark.parametrize("target", ["link", "absent"])
def test_a_link_to_nothing_is_no_folder(target: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(UsageError, match="link is not a folder you can write to"):
        check_output(tmp_path / "link" / "result")
    with pytest.raises(UsageError, match="link is not a folder you can write to"):
        check_output_folder(tmp_path / "link" / "result", BUNDLE, replace=True)
    assert names(tmp_path) == ["link"]


def test_file_takes_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    with atomic_file(tmp_path / "atomic"):
        pass
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize(
    ("failure", "raised", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            StarflowError,
            r"result.json: cannot be written \(No space left",
        ),
        (OSError(errno.EACCES, "Permission denied", "/elsewhere/data"), PermissionError, "/elsewhere/data"),
        (Stopped("by somebody"), Stopped, "by somebody"),
    ],
)
def test_failure_is_named_keeps_the_old_file_and_leaves_no_litter(
    tmp_path: Path, failure: BaseException, raised: type[BaseException], message: str
) -> None:
    destination = tmp_path / "result.json"
    destination.write_text("old")
    with pytest.raises(raised, match=message), atomic_file(destination) as temporary:
        temporary.write_text("half")
        raise failure
    assert destination.read_text() == "old"
    assert names(tmp_path) == ["result.json"]


def test_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"), atomic_file(tmp_path):
        pytest.fail("nothing may be written")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder that is recognised as a bundle, alone in another one."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(dict.fromkeys(BUNDLE.fields)))
    return folder


def test_folder_appears_only_when_finished(tmp_path: Path) -> None:
    destination = tmp_path / "bundle"
    with atomic_folder(destination, BUNDLE, replace=False) as temporary:
        (temporary / "manifest.json").write_text("{}")
        assert not destination.exists()
        assert temporary.parent == destination.parent
    assert names(destination) == ["manifest.json"]
    assert names(tmp_path) == ["bundle"]
    assert destination.stat().st_mode & 0o055 == 0o055, "others can read a bundle as they can any new folder"


def test_existing_folder_gives_way_only_when_asked(old: Path) -> None:
    with pytest.raises(UsageError, match="exists"), atomic_folder(old, BUNDLE, replace=False):
        pytest.fail("nothing may be written")
    with atomic_folder(old, BUNDLE, replace=True) as temporary:
        (temporary / "new").touch()
        assert names(old) == ["manifest.json"]
    assert names(old) == ["new"]
    assert names(old.parent) == ["bundle"]


@pytest.mark.parametrize(("failure", "raised"), [(OSError("disk on fire"), StarflowError), (Stopped(), Stopped)])
def test_failure_keeps_the_old_folder_and_leaves_no_litter(
    old: Path, failure: BaseException, raised: type[BaseException]
) -> None:
    with pytest.raises(raised), atomic_folder(old, BUNDLE, replace=True) as temporary:
        (temporary / "half").touch()
        raise failure
    assert names(old) == ["manifest.json"]
    assert names(old.parent) == ["bundle"]


def test_folder_never_replaces_a_file(tmp_path: Path) -> None:
    destination = tmp_path / "notes.txt"
    destination.write_text("mine")
    with (
        pytest.raises(UsageError, match="a file of that name exists"),
        atomic_folder(destination, BUNDLE, replace=True),
    ):
        pytest.fail("nothing may be written")
    assert destination.read_text() == "mine"


@pytest.mark.parametrize(
    "content", [None, "holiday", "[]", "{}", '{"schema_version": 1}', "[" * 100_000], ids=lambda text: str(text)[:20]
)
def test_folder_of_another_kind_is_never_replaced(tmp_path: Path, content: str | None) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "one.jpg").touch()
    if content is not None:
        (photos / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match="is not a bundle, so --force"), atomic_folder(photos, BUNDLE, replace=True):
        pytest.fail("nothing may be written")
    assert "one.jpg" in names(photos)


def test_folder_that_changes_meanwhile_is_not_replaced(old: Path) -> None:
    with pytest.raises(UsageError, match="is not a bundle"), atomic_folder(old, BUNDLE, replace=True):
        (old / "manifest.json").unlink()
        (old / "one.jpg").touch()
    assert names(old) == ["one.jpg"]


def test_empty_folder_gives_way(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with atomic_folder(tmp_path / "bundle", BUNDLE, replace=True) as temporary:
        (temporary / "new").touch()
    assert names(tmp_path / "bundle") == ["new"]


def test_source_is_never_replaced(old: Path) -> None:
    (old / "inner").mkdir()
    for source in (old, old / "inner", old.parent / "bundle" / ".." / "bundle"):
        with pytest.raises(UsageError, match="which is read"), atomic_folder(old, BUNDLE, replace=True, source=source):
            pytest.fail("nothing may be written")
    assert names(old) == ["inner", "manifest.json"]


@pytest.mark.parametrize("target", ["bundle", "nowhere"])
def test_nothing_is_written_through_a_link(old: Path, target: str) -> None:
    link = old.parent / "link"
    link.symlink_to(old.parent / target)
    with pytest.raises(UsageError, match="is a link"), atomic_folder(link, BUNDLE, replace=True):
        pytest.fail("nothing may be written")
    assert link.is_symlink() and names(old) == ["manifest.json"]


def test_parent_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match="file is not a folder you can write to"),
        atomic_file(tmp_path / "file" / "deeper" / "result"),
    ):
        pytest.fail("nothing may be written")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_parent_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="not a folder you can write to"), atomic_file(tmp_path / "result"):
        pytest.fail("nothing may be written")


def test_a_device_or_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for destination in (tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(UsageError, match="is a device, pipe or socket"), atomic_file(destination):
            pass
    assert names(tmp_path) == ["link", "pipe"] and (tmp_path / "pipe").is_fifo()


WRITER = (
    "import sys; from pathlib import Path; from starflow.runtime.plain.atomic_write import atomic_file, atomic_folder\n"
    "from starflow.runtime.plain.own_folder import BUNDLE\n"
    "writing = atomic_file('result') if sys.argv[1] == 'file' else atomic_folder('result', BUNDLE, replace=True)\n"
    "with writing as temporary:\n"
    "    print('writing', flush=True); input()\n"
)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path, kind: str) -> None:
    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, kind]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        return process

    killed, alive = start(), start()
    killed.kill()
    killed.communicate()
    (tmp_path / ".result.1a2b3c4d.txt").touch()  # not of this form
    assert len(names(tmp_path)) == 3
    start().communicate("\n")
    assert len([name for name in names(tmp_path) if name != "result"]) == 2, "that of the process at work stays"
    alive.communicate("\n")
    assert alive.returncode == 0
    assert names(tmp_path) == [".result.1a2b3c4d.txt", "result"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with atomic_file(tmp_path / "file"), atomic_folder(tmp_path / "folder", BUNDLE, replace=False) as folder:
            (folder / "inside").touch()
    finally:
        os.umask(before)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder", "folder/inside")}
    assert modes == {"file": 0o666 & ~mask, "folder": 0o777 & ~mask, "folder/inside": 0o666 & ~mask}


def test_an_output_is_tried_while_others_remove_what_is_abandoned(tmp_path: Path) -> None:
    ended = threading.Event()

    def remove() -> None:
        while not ended.is_set():
            remove_abandoned(tmp_path / "result.json")

    other = threading.Thread(target=remove)
    other.start()
    try:
        for _ in range(2000):
            check_output(tmp_path / "result.json")
    finally:
        ended.set()
        other.join()
    assert names(tmp_path) == []


def test_a_trial_removes_what_a_killed_trial_left(tmp_path: Path) -> None:
    """Of a file that is only ever appended to, nobody else would."""
    for name in (".log.jsonl.0123abcd", ".log.jsonl", ".other.jsonl.0123abcd"):
        (tmp_path / name).touch()
    check_output(tmp_path / "log.jsonl")
    check_output(tmp_path / "not" / "yet" / "log.jsonl")
    assert {path.name for path in tmp_path.iterdir()} == {".log.jsonl", ".other.jsonl.0123abcd"}
