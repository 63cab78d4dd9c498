"""Folders that tests share: made once in a run, by whichever of its processes needs one first."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock


@dataclass(frozen=True)
class MadeOnce:
    """Folders by name; nobody may change what is in them.

    Attributes:
        root: A folder that all processes of the run see.
    """

    root: Path

    def __call__(self, name: str, fill: Callable[[Path], object]) -> Path:
        """The folder of this name; whoever asks first makes and fills it, and others wait for it."""
        folder = self.root / name
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                folder.mkdir()
                try:
                    fill(folder)
                except BaseException:
                    shutil.rmtree(folder)
                    raise
        return folder
