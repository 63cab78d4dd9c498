"""Where the C++ library cannot be built, one line says why, and nothing fails."""

import subprocess
from pathlib import Path

import pytest

from tests.cpp_library import REPOSITORY, SKIPPED, environment


@pytest.mark.parametrize(
    ("tools", "says"),
    [(["cmake"], "C++ skipped: there is no C++ compiler"), ([], "C++ skipped: cmake is not installed")],
)
def test_what_is_missing_is_said(tmp_path: Path, tools: list[str], says: str) -> None:
    (tmp_path / "bin").mkdir()
    for tool in ("dirname", "mkdir"):
        (tmp_path / "bin" / tool).symlink_to(f"/usr/bin/{tool}")
    for tool in tools:  # it is only looked for
        (tmp_path / "bin" / tool).symlink_to("/usr/bin/true")
    variables = {**environment(), "CXX": "/nowhere/c++", "PATH": str(tmp_path / "bin")}
    command: list[str | Path] = ["/bin/sh", REPOSITORY / "runtime/cpp/build.sh", tmp_path / "cpp"]
    built = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert (built.returncode, built.stdout, built.stderr) == (SKIPPED, says + "\n", "")
