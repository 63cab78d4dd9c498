"""A kill before every operation on files leaves the old artifact or the new one, and nothing behind after the next run.

SIGKILL ends the process before the operation happens, so a kill shows the disk as the operations before it left it, and nothing
else outlives the process. Operations that find the same disk, the same names with the same content but for the length of
temporary files, which nothing reads, share one kill: the first of them is killed, the others count as `same disk`. The next run
is made once for all kills that left the same.
"""

import os
import signal
from collections.abc import Iterator, Sequence

from tests.attack.artifact_state import read_tree, signature
from tests.attack.file_observer import Operation
from tests.attack.stage import Stage


def kill_everywhere(stage: Stage, chosen: slice = slice(None)) -> Iterator[tuple[str, str, str]]:
    """Case, outcome and a line, for a kill before each of the chosen operations."""
    continued: set[str] = set()
    killed: set[str] = set()
    for number in range(len(stage.operations))[chosen]:
        case = f"{stage.scene.name}:{number}"
        if stage.disks[number] in killed:
            yield case, "same disk", ""
        else:
            killed.add(stage.disks[number])
            yield (case, *kill_before(stage, number, continued))


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
    outcome, line = stage.look()
    if outcome == "whole" and (left := signature(read_tree(stage.world))) not in continued:
        outcome, line = stage.go_on()
        if outcome == "whole":
            continued.add(left)
    return outcome, f"{where}: {line}"


def shown(operations: Sequence[Operation], number: int) -> str:
    """An operation in a few words."""
    if number >= len(operations):
        return f"operation {number}"
    operation = operations[number]
    path = operation.path.partition("/world/")[2] or operation.path
    second = operation.second.partition("/world/")[2]
    return f"before {operation.kind} {path}{' ' + second if second else ''}"
