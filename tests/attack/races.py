"""Two commands at once on one artifact: whoever reads it meets the old one or the new one, and nobody spoils it.

In most races one process stops before an operation on files and another command runs from start to end in between; every
operation has its turn. In the rest both run freely, many times.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

from starflow.runtime.plain.errors import StarflowError
from starflow.runtime.sampler import Sampler
from tests.attack.artifact_state import BrokenArtifactError, names, read_tree
from tests.attack.command import run_command
from tests.attack.file_observer import Operation, observing
from tests.attack.forked import Ended, attempt, freeze, import_ahead
from tests.attack.kills import shown
from tests.attack.scenes import EXPORT
from tests.attack.stage import LIMIT, Stage

PATIENCE = 3.0  # seconds that the second command has alone; one that waits for a lock goes on beside the first
Case = tuple[str, str, str]


class SecondCommand:
    """A command that another process runs while this one stops.

    The process is there from the beginning: forked later, it would inherit locks that other threads hold at that moment.
    """

    def __init__(self, run: Callable[[], str], told: Path) -> None:
        self._told = told
        self._told.unlink(missing_ok=True)
        ours, self._start = os.pipe()
        self._child = os.fork()
        if not self._child:
            os.close(self._start)
            try:
                if os.read(ours, 1):
                    self._write(run)
            finally:
                os._exit(0)
        os.close(ours)
        self.started = self._ended = False

    def start(self) -> None:
        """Let it run, alone for as long as PATIENCE says."""
        self.started = True
        os.write(self._start, b"x")
        end = time.monotonic() + PATIENCE
        while not self._ended and time.monotonic() < end:
            self._ended = os.waitpid(self._child, os.WNOHANG)[0] != 0
            time.sleep(0.002)

    def _write(self, run: Callable[[], str]) -> None:
        try:
            run()
            text = "done"
        except StarflowError as error:
            text = f"refused: {error}"
        except BaseException as error:
            text = f"raised: {error!r}"
        self._told.write_text(text, encoding="utf-8")

    def result(self) -> str:
        """`done`, `refused: ...` or `raised: ...`, once it has ended; empty if it was never started."""
        os.close(self._start)
        if not self._ended:
            os.waitpid(self._child, 0)
        return self._told.read_text(encoding="utf-8") if self.started else ""


class Readers:
    """A sampler that reads a bundle while `export --force` replaces it.

    Args:
        folder: Has `checkpoint` and `earlier`, and gets the bundle.
        name: What the bundle holds.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self._folder, self._bundle = name, folder, folder / "bundle"
        first = self._exported("earlier")
        import_ahead(lambda: first() + _images(self._bundle))
        freeze()
        self._expected = [self._made("earlier"), self._made("checkpoint")]

    def replace_everywhere(self, chosen: slice = slice(None)) -> Iterator[Case]:
        """Replace the bundle before each file that the sampler opens, and before each of its calls."""
        numbers = range(10**6)[chosen]
        for number in numbers:
            outcome, told = self._replace(number)
            if outcome == "past the end":
                return
            yield f"{self.name} read under export:{number}", outcome, told

    def read_in_a_loop(self, rounds: int) -> Iterator[Case]:
        """Open and generate so many times while another process exports without end, by turns from two checkpoints."""
        stop, told = self._folder / "stop", self._folder / "told"
        stop.unlink(missing_ok=True)
        told.unlink(missing_ok=True)
        writer = os.fork()
        if not writer:
            self._export_until(stop, told)
        try:
            for number in range(rounds):
                ended = attempt(lambda: _images(self._bundle), LIMIT)
                case = f"{self.name} opened and sampled:{number}"
                if ended.how != "done":
                    yield case, "error", f"{ended.how} {ended.told[-300:]}"
                else:
                    yield case, "whole" if ended.told in self._expected else "neither", ""
        finally:
            stop.touch()
            os.waitpid(writer, 0)
        if told.exists():
            yield f"{self.name} exported:0", "writer fails", told.read_text()

    def _exported(self, checkpoint: str) -> Callable[[], str]:
        words = ("export", str(self._folder / checkpoint), "-o", str(self._bundle), "--batch", "2", "--force")

        def run() -> str:
            run_command(*words)
            return ""

        return run

    def _made(self, checkpoint: str) -> str:
        export = self._exported(checkpoint)
        ended = attempt(lambda: export() + _images(self._bundle), LIMIT, None)
        if ended.how != "done":
            raise RuntimeError(f"{checkpoint}: {ended.told}")
        return ended.told

    def _replace(self, number: int) -> tuple[str, str]:
        """Replace before operation or call `number`."""

        def run() -> str:
            second = SecondCommand(self._exported("checkpoint"), self._folder / "second")
            count, where = -1, ""

            def step(what: str) -> None:
                nonlocal count, where
                count += 1
                if count == number:
                    where = what
                    second.start()

            def observe(operation: Operation) -> int:
                step(f"{operation.kind} {operation.path.partition('/bundle')[2]}")
                return 0

            with observing(self._bundle, observe):
                images = _images(self._bundle, lambda: step("a call"))
            if not (result := second.result()):
                return "past the end"
            return images + where if result == "done" else f"export: {result}"

        _expect(self._exported("earlier"))
        ended = attempt(run, LIMIT, None)
        if ended.how != "done":
            return "error", f"{ended.how} {ended.told[-300:]}"
        if ended.told == "past the end":
            return ended.told, ""
        if ended.told.startswith("export:"):
            return "writer fails", ended.told
        images, where = ended.told[:64], ended.told[64:]
        return ("whole" if images in self._expected else "neither"), f"replaced before {where}"

    def _export_until(self, stop: Path, told: Path) -> NoReturn:
        try:
            made = 0
            while not stop.exists():
                ended = attempt(self._exported(("checkpoint", "earlier")[made % 2]), LIMIT, None)
                if ended.how != "done":
                    told.write_text(f"export {made}: {ended.how} {ended.told[-300:]}")
                    break
                made += 1
        finally:
            os._exit(0)


def replace_under_writer(stage: Stage, chosen: slice = slice(None)) -> Iterator[Case]:
    """Export another checkpoint into the bundle that a command changes, before each of its operations.

    Of operations in a row that find the same disk, as the writes of one temporary file do, the first has its turn.

    Then the bundle is the exported one, as it is or changed from its own weights; the command either says in one line that the
    bundle is another one, or has done its work on the new one.
    """
    export = (*EXPORT[:1], "earlier", *EXPORT[2:], "--force")

    def exported() -> str:
        os.chdir(stage.world)
        return run_command(*export)

    def after(*runs: Callable[[], str]) -> str:
        stage.reset()
        for run in runs:
            _expect(run)
        return stage.state() + _plans(stage.world)

    own = lambda: stage.scene.run(stage.world)  # noqa: E731
    allowed = {after(exported), after(exported, own), after(own, exported)}
    last = ""
    for number in range(len(stage.operations))[chosen]:
        same, last = stage.disks[number] == last, stage.disks[number]
        if same:
            yield f"{stage.scene.name} under export:{number}", "same disk", ""
            continue
        ended = _interrupted(stage, number, exported)
        case, where = f"{stage.scene.name} under export:{number}", shown(stage.operations, number)
        result, _, failed = ended.told.partition("|")
        if ended.how != "done":
            yield case, "error", f"{where}: {ended.how} {ended.told[-300:]}"
        elif result != "done":
            yield case, "writer fails", f"{where}: {result}"
        elif not failed.isprintable():
            yield case, "message", f"{where}: {failed!r}"
        else:
            yield case, *_changed(stage, allowed, exported, f"{where}; {failed or 'done'}")


def _interrupted(stage: Stage, number: int, other: Callable[[], str]) -> Ended:
    """Run the stage's command in a fresh world, and another one before one of its operations; tells `other's end|its own error`."""
    stage.reset()

    def run() -> str:
        second = SecondCommand(other, stage.world.parent / "second")
        count, failed = -1, ""

        def observe(operation: Operation) -> int:
            nonlocal count
            count += operation.changes
            if operation.changes and count == number:
                second.start()
            return 0

        with observing(stage.world, observe):
            try:
                stage.scene.run(stage.world)
            except StarflowError as error:
                failed = str(error)
        return f"{second.result()}|{failed}"

    return attempt(run, LIMIT, None)


def _changed(stage: Stage, allowed: set[str], export: Callable[[], str], where: str) -> tuple[str, str]:
    try:
        state = stage.state() + _plans(stage.world)
    except BrokenArtifactError as error:
        return "broken", f"{where}: {error}"
    if state not in allowed:
        return "neither", where

    def beside() -> list[str]:
        return [path.name for path in stage.world.iterdir() if path.name.startswith(".bundle")]

    if beside():  # the bundle that the command still had open when another one took its place
        _expect(export)
    return ("left over", f"{where}: {', '.join(beside())}") if beside() else ("whole", where)


def train_twice(stage: Stage, chosen: slice = slice(None)) -> Iterator[Case]:
    """Start a second training in the folder of a first, before each of its operations: one of the two does the work.

    Before the folder is there nobody can lock it: the second may do all of the work, and the first finds it done.
    """
    for number in range(len(stage.operations))[chosen]:
        ended = _interrupted(stage, number, lambda: stage.scene.run(stage.world))
        case, where = f"train twice:{number}", shown(stage.operations, number)
        result, _, failed = ended.told.partition("|")
        refusals = result.startswith("refused") + bool(failed)
        if ended.how != "done" or result.startswith("raised"):
            yield case, "error", f"{where}: {ended.how} {ended.told[-300:]}"
        elif refusals != 1 and not (number == 0 and stage.operations[0].kind == "mkdir" and refusals == 0):
            yield case, "both" if not refusals else "none", f"{where}: second {result}; first {failed or 'done'}"
        else:
            left = names(read_tree(stage.world)) - stage.names
            outcome = "left over" if left else "whole" if stage.state() == stage.last else "neither"
            yield case, outcome, f"{where}: {', '.join(sorted(left))}"


def _images(bundle: Path, between: Callable[[], None] = lambda: None) -> str:
    """Digest of what a sampler makes; `between` is called between its calls."""
    with Sampler.open(bundle, threads=1) as sampler:
        between()
        noise = np.random.default_rng(0).standard_normal((2, *sampler.noise_shape), np.float32)
        classes = sampler.manifest.conditioning.kind.startswith("class")
        x = sampler.generate(noise, [1, 2] if classes else None)
        between()
        images = sampler.to_images(x)
        between()
        again = sampler.to_images(sampler.generate(noise, [1, 2] if classes else None))
    return hashlib.sha256(x.tobytes() + images.tobytes() + again.tobytes()).hexdigest()


def _expect(run: Callable[[], str]) -> None:
    ended = attempt(run, LIMIT, None)
    if ended.how != "done":
        raise RuntimeError(ended.told)


def _plans(world: Path) -> str:
    """The errors that stored plans were measured to have."""
    manifest = json.loads((world / "bundle/manifest.json").read_bytes())
    return " ".join(f"{plan['error']:.3g}" for plan in manifest.get("plans", ()))
