"""A disk that is full after so many bytes: one line, the artifact whole, nothing left behind, and the next run works.

Every operation that would need room fails with ENOSPC from then on, as on a disk that other programs keep full. The next run is
made once for all full disks that left the same files, as for kills.
"""

import errno
from collections.abc import Iterator

from tests.attack.artifact_state import names, read_tree, signature
from tests.attack.file_observer import Operation
from tests.attack.stage import Stage

GROWING = ("write", "create", "mkdir", "link", "resize")
OFFSETS = 50
FULL = ("No space left", "cannot be written", "disk is full")  # one of them says why the command failed


def fill_everywhere(stage: Stage, chosen: slice = slice(None)) -> Iterator[tuple[str, str, str]]:
    """Case, outcome and a line, for a disk that fills up at some of OFFSETS places in all that the command writes."""
    total = sum(_need(operation) for operation in stage.operations)
    continued: set[str] = set()
    for number in range(OFFSETS)[chosen]:
        yield (f"{stage.scene.name}:{number}", *fill_after(stage, total * number // OFFSETS, continued))


def fill_after(stage: Stage, limit: int, continued: set[str]) -> tuple[str, str]:
    """Let the disk be full after `limit` bytes, look, make room, run the command again, and look again.

    Args:
        stage: The command and its world.
        limit: Bytes.
        continued: What earlier full disks left from which the next run did its work; this one's is added.
    """
    written = 0

    def refuse(at: int, operation: Operation) -> int:
        nonlocal written
        need = _need(operation)
        if need and written + need > limit:
            return errno.ENOSPC
        written += need
        return 0

    stage.reset()
    before = names(read_tree(stage.world))
    ended = stage.play(refuse)
    where = f"after {limit} bytes"
    if ended.how != "refused":
        return ("goes on" if ended.how == "done" else ended.how), f"{where}: {ended.told[-300:]}"
    # Standard output, which `output:` stands for, has room.
    if not ended.told.isprintable() or not any(why in ended.told for why in FULL) or ended.told.startswith("output:"):
        return "message", f"{where}: {ended.told[:300]!r}"
    outcome, line = stage.look()
    if outcome == "whole":
        tree = read_tree(stage.world)
        if found := names(tree) - before - stage.names:
            outcome, line = "left over", ", ".join(sorted(found))
        elif (left := signature(tree)) not in continued:
            outcome, line = stage.go_on()
            if outcome == "whole":
                continued.add(left)
    return outcome, f"{where}: {line}"


def _need(operation: Operation) -> int:
    """Bytes of a disk that an operation takes; a name takes one, so that there is an offset before it."""
    if operation.kind not in GROWING:
        return 0
    return operation.size if operation.kind == "write" else 1
