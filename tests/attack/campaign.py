"""All attacks, one after the other, on several processes."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.attack.bundles import Bundles
from tests.attack.file_observer import can_observe
from tests.attack.forked import attempt
from tests.attack.fuzz import Fuzzer, Part
from tests.attack.honest import make_honest
from tests.attack.tally import ALLOWED, Tally
from tests.attack.watch import Watch, ended, say

if TYPE_CHECKING:
    from tests.attack.scenes import Scene

Case = tuple[str, str, str, str]  # part, case, outcome, told
Job = tuple[str, Callable[[], Iterator[Case]]]  # a scene's name, and its cases
BEGUN, ENDED, UNFINISHED = "begun", "ended", "unfinished"  # outcomes that are none: about a scene
NO_CASES = (BEGUN, ENDED, UNFINISHED)
POLL = 0.2  # seconds
FUZZED = ("bundles", "checkpoints", "recipes", "inputs")
FAULTS = ("kills", "full disks", "power losses", "races")
LONG = ("calibrate", "build")  # the scenes that take longest come first, so that no process waits for one at the end
MAKING = 600.0  # seconds; tracing the networks beside a flow takes one


@dataclass(frozen=True)
class Size:
    """How much is tried.

    Attributes:
        cases: Number of cases of each kind of damage.
        bundles, recipes: Kinds of them that are damaged.
        scenes: Names of the scenes that are played, and every how many-th operation; empty: all scenes, every operation.
        fill: Every how many-th place is where the disk is full.
        readers: What samplers read while it is replaced, and every how many-th operation.
        rounds: How often a sampler is opened while exports run freely.
        twice: Every how many-th operation of a training is where a second one starts.
    """

    cases: dict[str, int]
    bundles: tuple[str, ...]
    recipes: tuple[str, ...]
    scenes: dict[str, int]
    fill: int
    readers: dict[str, int]
    rounds: int
    twice: int


FULL = Size(
    cases={"bundles": 10_000, "checkpoints": 2_000, "recipes": 1_000, "inputs": 1_000},
    bundles=("class", "velocity", "captions", "latents", "shapes"),
    recipes=("flow", "continuous flow", "autoencoder"),
    scenes={},
    fill=1,
    readers={"pair": 1, "latent pair": 1},
    rounds=2_000,
    twice=4,
)
SHORT = Size(
    cases={"bundles": 100, "checkpoints": 20, "recipes": 8, "inputs": 0},
    bundles=("small",),
    recipes=("flow",),
    scenes={"export --force": 17, "import --force": 7, "train resumed": 40},
    fill=17,
    readers={"pair": 10},
    rounds=4,
    twice=80,
)


class Campaign:
    """Makes whole artifacts, then attacks them.

    Attributes:
        unfinished: A line for each part whose cases were not all tried, and why.
    """

    def __init__(self, scratch: Path, seed: int, processes: int, size: Size, end: float) -> None:
        self._scratch, self._seed, self._processes, self._size, self._end = scratch, seed, processes, size, end
        self._artifacts = scratch / "honest"
        self.unfinished: list[str] = []

    def run(self, only: str | None = None) -> dict[str, Tally]:
        """Run all parts, or one, or one case of one; return what came of them."""
        part, _, case = (only or "").partition(":")
        tallies: dict[str, Tally] = {}
        for name in FUZZED:
            if part in ("", name) and (count := self._size.cases[name]):
                numbers = range(int(case), int(case) + 1) if case else range(count)
                tallies[name] = self._fuzzed(name, numbers)
                self._complain(name, tallies[name].counts.total(), len(numbers))
        if part in ("", *FAULTS):
            if can_observe():
                for found, tally in self._played(part, case).items():
                    tallies[found] = tally
            else:
                self.unfinished.append(f"{', '.join(FAULTS)}: not tried: they need Linux and a C compiler")
        return tallies

    def _complain(self, part: str, done: int, wanted: int) -> None:
        if done < wanted:
            self.unfinished.append(f"{part}: {done:,} of {wanted:,} cases: the time is over")

    # Damage

    def _fuzzed(self, name: str, numbers: range) -> Tally:
        watch = Watch(name, len(numbers), "cases")
        part = self._part(name)
        fuzzer = Fuzzer(part, self._scratch / "damaged", self._seed)

        def work(share: int) -> Iterator[Case]:
            for number, outcome, told in fuzzer.run(numbers[share :: self._processes], self._over):
                yield name, str(number), outcome, told

        return _tallies(self._spread(work, watch)).get(name, Tally())

    def _part(self, name: str) -> Part:
        """A part whose whole artifacts are there."""
        if name == "bundles":
            self._make(self._size.bundles)
            return Bundles(self._artifacts, self._size.bundles)
        import torch

        torch.set_num_threads(1)
        from tests.attack.checkpoints import Checkpoints
        from tests.attack.inputs import Inputs
        from tests.attack.recipes import Recipes

        part: Checkpoints | Recipes | Inputs
        if name == "inputs":
            self._make(("class", "velocity", "captions"))
            part = Inputs(self._scratch, self._artifacts)
        else:
            part = Checkpoints(self._scratch) if name == "checkpoints" else Recipes(self._scratch, self._size.recipes)
        _expect_done(part.make, name)
        return part

    def _make(self, kinds: tuple[str, ...]) -> None:
        _expect_done(lambda: make_honest(self._artifacts, kinds), ", ".join(kinds))

    # Faults of the world

    def _played(self, part: str, case: str) -> dict[str, Tally]:
        import torch

        torch.set_num_threads(1)
        from tests.attack.scenes import scenes_here

        wanted, _, number = case.rpartition(":")
        if not number.isdigit():
            wanted, number = case, ""  # a scene as a whole
        size = self._size
        scenes = [scene for scene in scenes_here() if not size.scenes or scene.name in size.scenes]
        scenes.sort(key=lambda scene: LONG.index(scene.words[0]) if scene.words[0] in LONG else len(LONG))
        jobs: list[Job] = []
        for scene in scenes:
            if wanted in ("", scene.name, f"{scene.name} under export", f"{scene.name} twice"):
                chosen = slice(int(number), int(number) + 1) if number else None
                jobs.append((scene.name, partial(self._scene, scene, part, chosen)))
        read: list[str] = []
        for name, every in size.readers.items():
            if part in ("", "races") and (wanted in ("", f"{name} read under export")):
                chosen = slice(int(number), int(number) + 1) if number else slice(None, None, every)
                jobs.insert(0, (f"{name} read under export", partial(self._read, name, chosen)))
                read.append(name)
        watch = Watch(", ".join(FAULTS) if part == "" else part, len(jobs), "scenes")
        for name in read:
            self._make((name,))
        return _tallies(self._queued(jobs, watch))

    def _scene(self, scene: "Scene", part: str, chosen: slice | None) -> Iterator[Case]:
        from tests.attack.full_disk import fill_everywhere
        from tests.attack.kills import kill_everywhere
        from tests.attack.power_loss import lose_power_everywhere
        from tests.attack.races import replace_under_writer, train_twice
        from tests.attack.stage import Stage

        size = self._size
        stage = Stage(scene, self._scratch / "stage")
        every = slice(None, None, size.scenes.get(scene.name, 1))
        attacks: list[tuple[str, Iterator[tuple[str, str, str]]]] = [
            ("power losses", lose_power_everywhere(stage, chosen or slice(None))),
            ("full disks", fill_everywhere(stage, chosen or slice(None, None, size.fill))),
            ("kills", kill_everywhere(stage, chosen or every)),
        ]
        if scene.words[0] in ("calibrate", "build"):
            attacks.append(("races", replace_under_writer(stage, chosen or every)))
        if scene.name == "train":
            attacks.append(("races", train_twice(stage, chosen or slice(None, None, size.twice))))
        for name, cases in attacks:
            if part in ("", name):
                for case in cases:
                    yield name, *case
                    if self._over():
                        yield name, "", UNFINISHED, scene.name
                        return

    def _read(self, name: str, chosen: slice) -> Iterator[Case]:
        from tests.attack.races import Readers

        readers = Readers(self._artifacts / name, name)
        for case in readers.replace_everywhere(chosen):
            yield "races", *case
            if self._over():
                yield "races", "", UNFINISHED, name
                return
        if chosen.stop is None and name == "pair":
            for case in readers.read_in_a_loop(self._size.rounds):
                yield "races", *case
                if self._over():
                    yield "races", "", UNFINISHED, "opened and sampled"
                    return

    # Processes

    def _over(self) -> bool:
        return time.monotonic() > self._end

    def _queued(self, jobs: list[Job], watch: Watch) -> Iterator[Case]:
        """The cases of all jobs; each process takes the next job when it has done one."""
        ours, theirs = os.pipe()
        os.write(theirs, bytes(range(len(jobs))))
        os.close(theirs)

        def work(_: int) -> Iterator[Case]:
            while number := os.read(ours, 1):
                name, do = jobs[number[0]]
                start, cases, faults = time.monotonic(), 0, 0
                yield "", name, BEGUN, name
                try:
                    for case in do():
                        cases += case[2] not in NO_CASES
                        faults += case[2] not in (*ALLOWED, *NO_CASES)
                        yield case
                except RuntimeError as error:  # the others go on
                    yield FAULTS[0], "", "cannot be tried", str(error)
                yield "", name, ENDED, ended(name, cases, faults, time.monotonic() - start)

        yield from self._spread(work, watch)
        os.close(ours)

    def _spread(self, work: Callable[[int], Iterator[Case]], watch: Watch) -> Iterator[Case]:
        """Do the work of each share in a process of its own."""
        files = [self._scratch / f"cases-{share}" for share in range(self._processes)]
        for file in files:
            file.write_text("")
        left = {_fork(work, share, file) for share, file in enumerate(files)}
        failed = False
        with watch, ExitStack() as stack:
            readers = [stack.enter_context(file.open(encoding="utf-8")) for file in files]
            begun = ["" for _ in readers]  # of a line that is not whole yet
            while left:
                time.sleep(POLL)
                for child in tuple(left):
                    done, status = os.waitpid(child, os.WNOHANG)
                    left -= {done}
                    failed |= bool(done and status)
                for share, reader in enumerate(readers):
                    *lines, begun[share] = (begun[share] + reader.read()).split("\n")
                    yield from self._told(map(json.loads, lines), watch)
        if failed:
            raise RuntimeError("a process that tries cases has failed; its error is above")

    def _told(self, found: Iterable[Case], watch: Watch) -> Iterator[Case]:
        """The cases among what a process has told; the rest is for the watch, or unfinished."""
        for part, case, outcome, told in found:
            if outcome == UNFINISHED:
                self.unfinished.append(f"{part}: {told} is not finished: the time is over")
            elif outcome in (BEGUN, ENDED):
                say(told)
                watch.done(outcome == ENDED)
            else:
                watch.case(part, case, outcome, told)
                yield part, case, outcome, told


def _fork(work: Callable[[int], Iterator[Case]], share: int, file: Path) -> int:
    """Start a process that writes the cases of a share into a file, each when it was tried."""
    if child := os.fork():
        return child
    status = 1
    try:
        with file.open("w", encoding="utf-8") as out:
            for case in work(share):
                out.write(json.dumps(case) + "\n")
                out.flush()
        status = 0
    except BaseException as error:
        say(repr(error))
    finally:
        os._exit(status)


def _tallies(cases: Iterator[Case]) -> dict[str, Tally]:
    tallies: dict[str, Tally] = {}
    for part, case, outcome, told in cases:
        tallies.setdefault(part, Tally()).add(case, outcome, told)
    return dict(sorted(tallies.items(), key=lambda item: (*FUZZED, *FAULTS).index(item[0])))


def _expect_done(do: Callable[[], str], what: str) -> None:
    ended = attempt(do, MAKING, None)
    if ended.how != "done":
        raise RuntimeError(f"{what}: cannot be made: {ended.told}")
