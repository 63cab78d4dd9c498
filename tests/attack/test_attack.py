"""A short attack finds no fault; `make attack` runs the long one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attack.campaign import FAULTS, SHORT
from tests.attack.file_observer import can_observe


def test_a_short_attack_finds_no_fault(repository: Path) -> None:
    words = [sys.executable, "-m", "tests.attack", "--short", "--json", "--processes", "1"]
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["faults"] == []
    told = done.stderr.splitlines()
    assert told[0] == "bundles: 100 cases" and told[1].startswith("bundles: 100 cases in ")
    cases = {part: sum(counts.values()) for part, counts in found["counts"].items()}
    assert {part: cases[part] for part in ("bundles", "checkpoints", "recipes")} == {
        part: SHORT.cases[part] for part in ("bundles", "checkpoints", "recipes")
    }
    if can_observe():
        assert found["unfinished"] == [] and set(FAULTS) <= cases.keys()
    else:
        pytest.skip("kills, full disks, power losses and races need Linux and a C compiler")
