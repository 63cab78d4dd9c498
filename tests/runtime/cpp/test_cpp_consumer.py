"""Programs of others: they find the installed library with CMake or pkg-config, in C++ and in C."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cpp_library import PRESET, REPOSITORY, build_program, run

SHIPPED = REPOSITORY / "runtime/shipped/digits"


def test_the_installed_command_finds_the_installed_library(cpp_prefix: Path) -> None:
    assert run(cpp_prefix / "bin/starflow-run", "--help").startswith("Sample images")


def test_the_example_finds_the_library_and_draws_the_same_in_c(cpp_prefix: Path, tmp_path: Path) -> None:
    build_program(REPOSITORY / "examples/cpp", tmp_path, cpp_prefix)
    drawn = run(tmp_path / "digits", SHIPPED)
    assert drawn.count("\n") == 56 and 200 < drawn.count("##") < 800
    assert run(tmp_path / "digits_c", SHIPPED) == drawn
    refused = subprocess.run([tmp_path / "digits_c", "/nowhere"], capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1


@pytest.mark.skipif(PRESET != "release", reason="sanitizers have an allocator of their own")
def test_a_token_allocates_nothing(cpp_prefix: Path, tmp_path: Path) -> None:
    if not shutil.which("pkg-config"):
        pytest.skip("pkg-config is not installed")
    library = next(cpp_prefix.rglob("libstarflow.so")).parent
    flags = run("pkg-config", "--cflags", "--libs", "starflow", PKG_CONFIG_PATH=str(library / "pkgconfig")).split()
    program = tmp_path / "allocations"
    compiler = os.environ.get("CXX", "c++")
    run(compiler, "-std=c++17", "-O1", Path(__file__).with_name("allocations.cpp"), "-o", program, *flags)
    printed = run(program, SHIPPED, LD_LIBRARY_PATH=str(library))
    found = re.fullmatch(r"(\d+) allocations, (\d+) reports, (\d+) in all\n", printed)
    assert found, printed
    between, reports, total = map(int, found.groups())
    assert reports == 4 * 4 and total > 100, "nothing was counted"
    assert between == 0
