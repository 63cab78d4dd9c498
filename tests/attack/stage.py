"""A scene that is played many times: on the whole, or up to an operation where something happens to it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from tests.attack.artifact_state import BrokenArtifactError, Tree, names, read_tree, signature
from tests.attack.file_observer import Operation, observing
from tests.attack.forked import Ended, attempt, freeze, import_ahead
from tests.attack.scenes import Scene, copy_world

LIMIT = 120.0  # seconds; the slowest scene takes a few


class Stage:
    """The world of a scene, ready to be played.

    Attributes:
        first, last: State of the artifact before the command and after it.
        between: States on the way that count as whole; empty unless the scene makes several.
        operations: What the command does to files, in order.
        disks: Signature of the world before each operation.
        names: Every name in the world after the command.
    """

    def __init__(self, scene: Scene, scratch: Path) -> None:
        self.scene = scene
        place = scratch / f"{scene.name.replace(' ', '-')}-{os.getpid()}"
        self._template, self.world = place / "template", place / "world"
        self._template.mkdir(parents=True)
        _expect_done(attempt(lambda: scene.fill(self._template) or "", LIMIT, None), f"{scene.name}: its world")
        import_ahead(lambda: self._in_fresh_world(scene.run))
        freeze()
        self.operations: list[Operation] = []
        self.disks: list[str] = []
        states: list[str] = []

        def played() -> str:
            found: list[tuple[list[object], str, str]] = []

            def note(number: int, operation: Operation) -> int:
                seen = [operation.kind, operation.path, operation.second, operation.size]
                tree = read_tree(self.world)
                found.append((seen, self._state_or_nothing(tree), signature(tree)))
                return 0

            self._run(note)
            return json.dumps(found)

        self.reset()
        self.first = self.state()
        ended = attempt(played, LIMIT, None)
        _expect_done(ended, scene.name)
        for operation, state, disk in json.loads(ended.told):
            self.operations.append(Operation(*operation))
            states.append(state)
            self.disks.append(disk)
        self.last = self.state()
        self.between = set(states) - {""} if scene.steps else set()
        self.names = names(read_tree(self.world))

    @property
    def whole(self) -> set[str]:
        """The states that count as whole."""
        return {self.first, self.last, *self.between}

    def reset(self) -> None:
        """Make the world as it was before the command."""
        copy_world(self._template, self.world)

    def play(self, before: Callable[[int, Operation], int]) -> Ended:
        """Run the command in the world as it is.

        `before` is called before each operation that changes something, with its number, counting from 0, and itself; it returns
        0, or the errno with which the operation fails.
        """
        return attempt(lambda: self._run(before), LIMIT, None)

    def play_on(self) -> Ended:
        """Run the command in the world as it is."""
        return attempt(lambda: self.scene.run(self.world), LIMIT, None)

    def state(self) -> str:
        """State of the artifact; BrokenArtifactError if it is not whole."""
        return self.scene.state(read_tree(self.world))

    def look(self) -> tuple[str, str]:
        """Whether the artifact is whole: the outcome, and a line about it."""
        try:
            state = self.state()
        except BrokenArtifactError as error:
            return "broken", str(error)
        if state not in self.whole:
            return "neither", f"state {state}, expected one of {sorted(self.whole)}"
        return "whole", ""

    def go_on(self) -> tuple[str, str]:
        """Run the command in the world as something left it, where the artifact is whole; the outcome, and a line about it.

        The command has to do its work, and to leave the names that it leaves after a run without a fault. A command that refuses
        what it has made itself may refuse, if it had done its work.
        """
        before = self.state()
        again = self.play_on()
        may_refuse = self.scene.once and before == self.last
        if again.how != "done" and not (again.how == "refused" and may_refuse):
            return "next run fails", f"{again.how} {again.told[-300:]}"
        outcome, line = self.look()
        if outcome == "broken":
            return "broken by next run", line
        if (state := self.state()) != self.last:
            return "next run differs", f"state {state}, expected {self.last}"
        found = names(read_tree(self.world))
        if found - self.names:
            return "left over", ", ".join(sorted(found - self.names))
        if self.names - found:
            return "missing", ", ".join(sorted(self.names - found))
        return "whole", ""

    def _state_or_nothing(self, tree: Tree) -> str:
        try:
            return self.scene.state(tree)
        except BrokenArtifactError:
            return ""

    def _run(self, before: Callable[[int, Operation], int]) -> str:
        number = -1

        def observe(operation: Operation) -> int:
            nonlocal number
            if not operation.changes:
                return 0
            number += 1
            return before(number, operation)

        with observing(self.world, observe):
            return self.scene.run(self.world)

    def _in_fresh_world(self, run: Callable[[Path], str]) -> str:
        self.reset()
        return run(self.world)


def _expect_done(ended: Ended, what: str) -> None:
    if ended.how != "done":
        raise RuntimeError(f"{what}: the command fails without a fault: {ended.told[-2000:]} {ended.printed[-500:]!r}")
