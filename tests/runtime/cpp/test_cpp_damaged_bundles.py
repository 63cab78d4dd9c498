"""Damaged bundles do to C++ what they do to Python; `make cpp-attack` tries ten thousand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cpp_library import PRESET

CASES = 60


@pytest.mark.skipif(PRESET == "sanitize-threads", reason="one thread, and thousands of forks")
@pytest.mark.usefixtures("cpp_folder")
def test_a_short_attack_finds_no_difference(repository: Path) -> None:
    words = [sys.executable, "-m", "tests.attack.cpp_bundles", "--kinds", "small", "--cases", str(CASES)]
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True)
    counts = {name: int(count) for name, count in re.findall(r"^(\w[\w+ ]*?) +([\d,]+)$", done.stdout, re.MULTILINE)}
    assert done.returncode == 0, done.stderr
    assert sum(counts.values()) == CASES and counts["refused"] > CASES / 2, done.stdout
