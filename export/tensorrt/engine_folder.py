"""A folder of engines with its record: what of an earlier build is there, where new engines go, what is removed in the end."""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from starflow.export.bundle_folder import file_spec
from starflow.runtime.bundle.bundle import Bundle, sha256
from starflow.runtime.bundle.graph_spec import FileSpec
from starflow.runtime.plain.atomic_write import atomic_file, check_file, make_folders
from starflow.runtime.plain.errors import BundleError

KEPT = (".engine", ".runtime-cache")  # engines, and what the runtime keeps beside them


class EngineFolder:
    """A folder inside a bundle, whose lock the caller holds.

    Args:
        folder: Where the engines lie; made if it is not there.
        record: Name of the file that names them.

    Raises:
        BundleError: the folder leads out of the bundle, or cannot be written.
    """

    def __init__(self, bundle: Bundle, folder: Path, record: str) -> None:
        self._bundle, self.folder, self.record = bundle, folder, folder / record
        if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(bundle.folder)):
            raise BundleError(f"{folder}: a link on its way leads out of the bundle; remove it")
        check_file(self.record)
        make_folders(folder)
        for abandoned in (*folder.glob(".*.engine.*"), *folder.glob(f".{record}.*")):
            abandoned.unlink()  # of a build that was killed; the lock says that no other is at work

    def file(self, path: Path) -> FileSpec:
        """A finished engine, as the record names it."""
        return file_spec(path, self._bundle.folder)

    def is_whole(self, recorded: FileSpec) -> bool:
        """Whether an engine that the record names is there, and is what was built."""
        path = self._bundle.path(recorded)
        return path.is_file() and self.file(path) == recorded

    def free_path(self, name: str) -> Path:
        """A path where no engine lies: those that the record names stay as they are until it names others."""
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        return next(path for path in (self.folder / f"{each}.engine" for each in names) if not path.exists())

    def write(self, content: str) -> None:
        """Replace the record."""
        with atomic_file(self.record) as temporary:
            temporary.write_text(content + "\n", encoding="utf-8")

    def tidy(self, named: Iterable[FileSpec]) -> None:
        """Remove all engines but those that the record names."""
        stems = {Path(file.path).stem for file in named}
        for path in self.folder.iterdir():
            if path.suffix in KEPT and path.stem not in stems:
                path.unlink()

    def check_source(self, file: FileSpec) -> None:
        """Check a file that goes into an engine, because the engine's key states the digest of it."""
        if sha256(self._bundle.path(file)) != file.sha256:
            raise BundleError(
                f"{self._bundle.root / file.path}: changed since it was exported; copy or export the bundle again"
            )
