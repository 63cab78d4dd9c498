"""A power loss at any moment leaves the old artifact or the new one, and what a command has reported stays.

What survives a power loss is decided by which data and which names were synced. The argument, for every file system of Linux:

* Content is certain once its file was synced, and names once their folder was. Before that, the system may have written any
  part of them, in any order, except that the names of one folder change in the order in which they were changed (journals
  commit in order).
* So at each operation of a command three disks are the extremes: `strict` has only what was synced; `early` has all names as
  they are now, and of the content what was synced; `late` has the content as it is now, and of the names what was synced.
  A fault of ordering shows in one of them: content that was renamed into place before it was synced is lost in `early`; an
  old artifact that was removed before the new name was synced is lost in `late` and `strict`.
* On each of these disks the artifact has to be one that also stood there on the way, whole. After the command has ended, it
  has to be the new one.

Contents are told apart by inode; a file that was never synced is empty.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from tests.attack.artifact_state import ABSENT, BrokenArtifactError, Tree
from tests.attack.file_observer import Operation, observing
from tests.attack.forked import attempt
from tests.attack.stage import LIMIT, Stage

DISKS = ("strict", "early", "late")
Folder = dict[str, int]  # names and inodes


class Disk:
    """What was synced below a folder, followed operation by operation."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._content: dict[int, bytes] = {}  # as synced, or as it was at the end of an unlinked file
        self._names: dict[int, Folder] = {}
        self._last: dict[int, bytes | Folder] = {}  # as it is, of everything that ever was
        self._look()
        for inode, what in self._last.items():
            self._keep(inode, what)

    def before(self, operation: Operation) -> None:
        """Follow an operation that is about to happen."""
        self._look()
        if operation.kind == "sync":
            inode = os.stat(operation.path).st_ino
            if inode in self._last:
                self._keep(inode, self._last[inode])

    def after(self) -> None:
        """Look once more, after the last operation."""
        self._look()

    def tree(self, disk: str) -> Tree:
        """The files that one of the extreme disks holds."""
        tree: Tree = {}
        self._walk(os.stat(self._root).st_ino, "", disk, tree)
        return tree

    def _look(self) -> None:
        for folder, folders, files in os.walk(self._root):
            place = Path(folder)
            entries = {name: os.lstat(place / name).st_ino for name in (*folders, *files)}
            self._last[os.stat(folder).st_ino] = entries
            for name in files:
                self._last[entries[name]] = (place / name).read_bytes()

    def _keep(self, inode: int, what: bytes | Folder) -> None:
        if isinstance(what, bytes):
            self._content[inode] = what
        else:
            self._names[inode] = dict(what)

    def _walk(self, inode: int, path: str, disk: str, tree: Tree) -> None:
        now = self._last[inode]
        if isinstance(now, bytes):
            tree[path] = now if disk == "late" else self._content.get(inode, b"")
            return
        if path:
            tree[f"{path}/"] = b""
        # A folder's names as they are now may be those of a folder that is gone: then they are what it held last.
        for name, entry in (now if disk == "early" else self._names.get(inode, {})).items():
            self._walk(entry, f"{path}/{name}" if path else name, disk, tree)


def lose_power_everywhere(stage: Stage) -> Iterator[tuple[str, str, str]]:
    """Case, outcome and a line, for a power loss before each operation of the command, and after it."""
    stage.reset()

    def played() -> str:
        disk = Disk(stage.world)
        found: list[tuple[str, str]] = []

        def observe(operation: Operation) -> int:
            if operation.changes:
                disk.before(operation)
                found.extend((name, _state(stage, disk.tree(name))) for name in DISKS)
            return 0

        with observing(stage.world, observe):
            stage.scene.run(stage.world)
        disk.after()
        found.extend((name, _state(stage, disk.tree(name))) for name in DISKS)
        return json.dumps(found)

    ended = attempt(played, LIMIT, None)
    if ended.how != "done":
        raise RuntimeError(f"{stage.scene.name}: {ended.told}")
    last = len(stage.operations)
    for index, (disk, state) in enumerate(json.loads(ended.told)):
        number = index // len(DISKS)
        where = f"{disk} disk, operation {number} of {last}"
        if state.startswith("broken"):
            outcome = "broken"
        elif number >= last and state != stage.last:
            outcome = "not kept"
        elif state not in stage.whole and not (state == ABSENT == stage.first):
            outcome = "neither"
        else:
            outcome = "whole"
        yield f"{stage.scene.name}:{number}:{disk}", outcome, f"{where}: {state}"


def _state(stage: Stage, tree: Tree) -> str:
    try:
        return stage.scene.state(tree)
    except BrokenArtifactError as error:
        return f"broken: {error}"
