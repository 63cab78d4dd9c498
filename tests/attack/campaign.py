"""All attacks, one after the other, on several processes."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.attack.bundles import Bundles
from tests.attack.file_observer import can_observe
from tests.attack.forked import attempt
from tests.attack.fuzz import Fuzzer, Part
from tests.attack.honest import make_honest
from tests.attack.tally import ALLOWED, Tally

if TYPE_CHECKING:
    from tests.attack.scenes import Scene

Case = tuple[str, str, str, str]  # part, case, outcome, told
FUZZED = ("bundles", "checkpoints", "recipes", "inputs")
FAULTS = ("kills", "full disks", "power losses", "races")
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
        part = self._part(name)
        fuzzer = Fuzzer(part, self._scratch / "damaged", self._seed)

        def work(share: int) -> Iterator[Case]:
            for number, outcome, told in fuzzer.run(numbers[share :: self._processes], self._over):
                yield name, str(number), outcome, told

        cases = self._spread(self._processes, work)
        return _tallies(cases).get(name, Tally())

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
        size = self._size
        scenes = [scene for scene in scenes_here() if not size.scenes or scene.name in size.scenes]
        jobs: list[Callable[[], Iterator[Case]]] = []
        for scene in scenes:
            if wanted in ("", scene.name, f"{scene.name} under export", f"{scene.name} twice"):
                chosen = slice(int(number), int(number) + 1) if number else None
                jobs.append(lambda scene=scene, chosen=chosen: self._scene(scene, part, chosen))  # type: ignore[misc]
        for name, every in size.readers.items():
            if part in ("", "races") and (wanted in ("", f"{name} read under export")):
                self._make((name,))
                chosen = slice(int(number), int(number) + 1) if number else slice(None, None, every)
                jobs.insert(0, lambda name=name, chosen=chosen: self._read(name, chosen))  # type: ignore[misc]
        return _tallies(self._queued(jobs))

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
                        yield name, "", "unfinished", scene.name
                        return

    def _read(self, name: str, chosen: slice) -> Iterator[Case]:
        from tests.attack.races import Readers

        readers = Readers(self._artifacts / name, name)
        for case in readers.replace_everywhere(chosen):
            yield "races", *case
            if self._over():
                yield "races", "", "unfinished", name
                return
        if chosen.stop is None and name == "pair":
            for case in readers.read_in_a_loop(self._size.rounds):
                yield "races", *case
                if self._over():
                    yield "races", "", "unfinished", "opened and sampled"
                    return

    # Processes

    def _over(self) -> bool:
        return time.monotonic() > self._end

    def _queued(self, jobs: list[Callable[[], Iterator[Case]]]) -> Iterator[Case]:
        """The cases of all jobs; each process takes the next job when it has done one."""
        ours, theirs = os.pipe()
        os.write(theirs, bytes(range(len(jobs))))
        os.close(theirs)

        def work(_: int) -> Iterator[Case]:
            while number := os.read(ours, 1):
                try:
                    yield from jobs[number[0]]()
                except RuntimeError as error:  # the others go on
                    yield FAULTS[0], "", "cannot be tried", str(error)

        yield from self._spread(self._processes, work)
        os.close(ours)

    def _spread(self, processes: int, work: Callable[[int], Iterator[Case]]) -> Iterator[Case]:
        """Do the work of each share in a process of its own; a fault is printed when it is found."""
        files = [self._scratch / f"cases-{share}" for share in range(processes)]
        children = []
        for share, file in enumerate(files):
            child = os.fork()
            if not child:
                status = 1
                try:
                    with file.open("w", encoding="utf-8") as out:
                        for part, case, outcome, told in work(share):
                            out.write(json.dumps((part, case, outcome, told)) + "\n")
                            out.flush()
                            if outcome not in ALLOWED and outcome != "unfinished":
                                print(
                                    f"{part}:{case} {outcome}: {told}"[:600].encode("unicode_escape").decode(),
                                    file=sys.stderr,
                                    flush=True,
                                )
                    status = 0
                except BaseException as error:
                    print(f"{error!r}"[:3000], file=sys.stderr, flush=True)
                finally:
                    os._exit(status)
            children.append(child)
        failed = [os.waitpid(child, 0)[1] for child in children]
        for file in files:
            for line in file.read_text(encoding="utf-8").splitlines():
                part, case, outcome, told = json.loads(line)
                if outcome == "unfinished":
                    self.unfinished.append(f"{part}: {told} is not finished: the time is over")
                else:
                    yield part, case, outcome, told
        if any(failed):
            raise RuntimeError("a process that tries cases has failed; its error is above")


def _tallies(cases: Iterator[Case]) -> dict[str, Tally]:
    tallies: dict[str, Tally] = {}
    for part, case, outcome, told in cases:
        tallies.setdefault(part, Tally()).add(case, outcome, told)
    return dict(sorted(tallies.items(), key=lambda item: (*FUZZED, *FAULTS).index(item[0])))


def _expect_done(do: Callable[[], str], what: str) -> None:
    ended = attempt(do, MAKING, None)
    if ended.how != "done":
        raise RuntimeError(f"{what}: cannot be made: {ended.told}")
