"""A kill before every operation on files leaves the old artifact or the new one, and nothing behind after the next run.

SIGKILL ends the process before the operation happens, so each kill shows the disk as the operations before it left it. The next
run is made once for all kills that left the same names with the same content, but for the length of temporary files, whose
content nothing reads.
"""

import os
import signal
from collections.abc import Iterator, Sequence

from tests.attack.artifact_state import BrokenArtifactError, names, read_tree, signature
from tests.attack.file_observer import Operation
from tests.attack.stage import Stage


def kill_everywhere(stage: Stage, every: int = 1) -> Iterator[tuple[str, str, str]]:
    """Case, outcome and a line, for a kill before each `every`-th operation."""
    continued: set[str] = set()
    for number in range(0, len(stage.operations), every):
        yield (f"{stage.scene.name}:{number}", *kill_before(stage, number, continued))


def kill_before(stage: Stage, number: int, continued: set[str]) -> tuple[str, str]:
    """Kill the command before one of its operations, look, run it again, and look again.

    Args:
        stage: The command and its world.
        number: The operation.
        continued: What earlier kills left from which the next run did its work; this one's is added.
    """

    def kill(at: int, operation: Operation) -> int:
        if at == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    stage.reset()
    ended = stage.play(kill)
    where = shown(stage.operations, number)
    if ended.told != "SIGKILL":
        return "not killed", f"{where}: {ended.how} {ended.told[-200:]}"
    try:
        state = stage.state()
    except BrokenArtifactError as error:
        return "broken", f"{where}: {error}"
    if state not in stage.whole:
        return "neither", f"{where}: state {state}, expected one of {sorted(stage.whole)}"
    left = signature(read_tree(stage.world))
    if left in continued:
        return "whole", where
    again = stage.play_on()
    refused = stage.scene.once and again.how == "refused" and state == stage.last
    if again.how != "done" and not refused:
        return "next run fails", f"{where}: {again.how} {again.told[-300:]}"
    try:
        state = stage.state()
    except BrokenArtifactError as error:
        return "broken by next run", f"{where}: {error}"
    if state != stage.last:
        return "next run differs", f"{where}: state {state}, expected {stage.last}"
    found = names(read_tree(stage.world))
    if found - stage.names:
        return "left over", f"{where}: {', '.join(sorted(found - stage.names))}"
    if stage.names - found:
        return "missing", f"{where}: {', '.join(sorted(stage.names - found))}"
    continued.add(left)
    return "whole", where


def shown(operations: Sequence[Operation], number: int) -> str:
    """An operation in a few words."""
    if number >= len(operations):
        return f"operation {number}"
    operation = operations[number]
    path = operation.path.partition("/world/")[2] or operation.path
    second = operation.second.partition("/world/")[2]
    return f"before {operation.kind} {path}{' ' + second if second else ''}"
