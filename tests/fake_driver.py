"""A library in place of the NVIDIA driver's, which says what CUDA it is for and can do nothing else."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = "int cuDriverGetVersion(int *version) { *version = %d; return 0; }"


def make_library(folder: Path, name: str, source: str, *needed: Path) -> Path:
    """Compile a shared library called `name`, linked with the libraries it needs; skips the test where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "source.c").write_text(source)
    command: list[str | Path] = [
        compiler,
        "-shared",
        "-fPIC",
        f"-Wl,-soname,{name}",
        "-o",
        folder / name,
        folder / "source.c",
        *needed,
    ]
    subprocess.run(command, check=True)
    return folder / name


def make_driver(folder: Path, cuda: tuple[int, int], name: str = "libcuda.so.1") -> Path:
    """Compile a driver for a release of CUDA; programs that find `folder` in LD_LIBRARY_PATH load it.

    A process of the tests takes another name: CUDA itself would find a library of the driver's name once it is loaded.
    """
    return make_library(folder, name, SOURCE % (1000 * cuda[0] + 10 * cuda[1]))
