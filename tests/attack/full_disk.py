"""A disk that is full after so many bytes: one line, the artifact whole, nothing left behind, and the next run works.

Every operation that would need room fails with ENOSPC from then on, as on a disk that other programs keep full.
"""

import errno
from collections.abc import Iterator

from tests.attack.artifact_state import BrokenArtifactError, names, read_tree
from tests.attack.file_observer import Operation
from tests.attack.stage import Stage

GROWING = ("write", "create", "mkdir", "link", "resize")


def fill_everywhere(stage: Stage, offsets: int) -> Iterator[tuple[str, str, str]]:
    """Case, outcome and a line, for a disk that fills up at each of so many places of all that the command writes."""
    total = sum(_need(operation) for operation in stage.operations)
    for index in range(offsets):
        limit = total * index // offsets
        yield (f"{stage.scene.name}:{limit}", *fill_after(stage, limit))


def fill_after(stage: Stage, limit: int) -> tuple[str, str]:
    """Let the disk be full after `limit` bytes, look, make room, run the command again, and look again."""
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
    if not ended.told.isprintable() or "No space left" not in ended.told:
        return "message", f"{where}: {ended.told[:300]!r}"
    try:
        state = stage.state()
    except BrokenArtifactError as error:
        return "broken", f"{where}: {error}"
    if state not in stage.whole:
        return "neither", f"{where}: state {state}"
    found = names(read_tree(stage.world)) - before - stage.names
    if found:
        return "left over", f"{where}: {', '.join(sorted(found))}"
    again = stage.play_on()
    if again.how != "done" and not (stage.scene.once and state == stage.last):
        return "next run fails", f"{where}: {again.how} {again.told[-300:]}"
    return ("whole", where) if stage.state() == stage.last else ("next run differs", where)


def _need(operation: Operation) -> int:
    """Bytes of a disk that an operation takes; a name takes one, so that there is an offset before it."""
    if operation.kind not in GROWING:
        return 0
    return operation.size if operation.kind == "write" else 1
