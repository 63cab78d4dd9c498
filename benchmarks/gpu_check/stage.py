"""What a stage of the check is given, and what it leaves behind."""

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from starflow.runtime.plain.atomic_write import atomic_file

Facts = dict[str, Any]


class UnavailableError(Exception):
    """A stage this machine has not got what it takes for."""


class Large(NamedTuple):
    """The size of the larger model; 2048 wide with 12 layers is 1.2 GB in float16, far beyond any L2 cache."""

    width: int
    layers: int


@dataclass(frozen=True)
class Setting:
    """What a stage works on."""

    folder: Path
    large: Large
    repetitions: int

    @property
    def digits(self) -> Path:
        """The bundle of the digits model."""
        return self.folder / "digits"

    @property
    def emoji(self) -> Path:
        """The bundle of the emoji model, with its text encoder and without its autoencoder."""
        return self.folder / "emoji"

    @property
    def continuous(self) -> Path:
        """The bundle of the continuous flow of digits."""
        return self.folder / "continuous"

    @property
    def large_bundle(self) -> Path:
        """The bundle of the larger model."""
        return self.folder / "large"

    @property
    def large_checkpoint(self) -> Path:
        """Its checkpoint, in float16."""
        return self.folder / "large-checkpoint"


@dataclass(frozen=True)
class Stage:
    """A part of the check."""

    work: Callable[[Setting], Facts]
    seconds: int  # that it may well take


@dataclass
class Result:
    """What came of a stage; `facts` are its figures."""

    name: str
    outcome: Literal["passed", "failed", "not run"]
    seconds: float
    reason: str = ""
    facts: Facts = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Result":
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        """Write the result, whole or not at all."""
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")


def run_stage(name: str, work: Callable[[Setting], Facts], setting: Setting) -> None:
    """Run a stage and write what came of it."""
    start = time.perf_counter()
    result = Result(name, "passed", 0.0)
    try:
        result.facts = work(setting)
        if result.facts.pop("failed", False):
            result.outcome = "failed"
    except UnavailableError as reason:
        result.outcome, result.reason = "not run", str(reason)
    except Exception as error:  # whatever it is, the other stages go on
        traceback.print_exc()
        result.outcome, result.reason = "failed", f"{type(error).__name__}: {error}"[:500]
    result.seconds = time.perf_counter() - start
    result.write(setting.folder / f"{name}.json")


def starflow(*arguments: object, statuses: Sequence[int] = (0,)) -> Facts:
    """Run a command with --json and return what it printed; RuntimeError if it ends with another status."""
    command = [sys.executable, "-m", "starflow.runtime", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in statuses or not done.stdout:
        raise RuntimeError(f"{' '.join(map(str, arguments))}: status {done.returncode}: {done.stderr.strip()[-1500:]}")
    facts: Facts = json.loads(done.stdout)
    return facts
