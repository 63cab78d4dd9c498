"""Where the C++ library cannot be built, one line says why, and nothing fails."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cpp_library import REPOSITORY, SKIPPED


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"CXX": "/nowhere/c++"}, "C++ skipped: there is no C++ compiler"),
        ({"PATH": "{bin}"}, "C++ skipped: cmake is not installed"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, environment: dict[str, str], says: str) -> None:
    (tmp_path / "bin").mkdir()
    for tool in ("dirname", "mkdir"):
        (tmp_path / "bin" / tool).symlink_to(f"/usr/bin/{tool}")
    chosen = {name: value.format(bin=tmp_path / "bin") for name, value in environment.items()}
    command: list[str | Path] = ["/bin/sh", REPOSITORY / "runtime/cpp/build.sh", tmp_path / "cpp"]
    built = subprocess.run(command, env={**os.environ, **chosen}, capture_output=True, text=True)
    assert (built.returncode, built.stdout, built.stderr) == (SKIPPED, says + "\n", "")
