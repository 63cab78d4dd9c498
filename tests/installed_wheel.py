"""The wheel of this repository, built as a release is, and its installation into other environments."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDERS = ("calibration", "export", "runtime", "training")


def build_wheel(repository: Path, source: Path) -> Path:
    """Build the wheel through the source distribution, from a copy in `source`: no old build/ can leak in."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    for folder in FOLDERS:
        shutil.copytree(repository / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "build", "--outdir", source / "dist", source], check=True)
    (built,) = (source / "dist").glob("*.whl")
    return built


def make_environment(folder: Path) -> Path:
    """Make an environment with nothing in it; returns its folder of scripts."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin"


def pip(scripts: Path, *arguments: str | Path) -> list[str | Path]:
    """A command of pip, this environment's, for another one."""
    return [sys.executable, "-m", "pip", "--python", scripts / "python", *arguments]


def install(scripts: Path, repository: Path, *what: str | Path, but: Sequence[str] = ()) -> None:
    """Install as a user does, what nobody imports here not compiled, in the releases that the constraints pin.

    Args:
        but: Names of packages that the constraints do not pin here.
    """
    pins = (repository / "constraints-cpu.txt").read_text().splitlines()
    kept = scripts.parent / "constraints.txt"
    kept.write_text("\n".join(pin for pin in pins if pin.partition("==")[0] not in but))
    command = pip(scripts, "install", "--quiet", "--no-compile", "--constraint", kept, *what)
    subprocess.run(command, check=True, env=clean_environment())


def clean_environment() -> dict[str, str]:
    """The variables of this process for one of another environment: none of Python's, which would lead it here."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
