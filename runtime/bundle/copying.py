"""Copies a bundle, whole or with some of its variants only, from wherever it lies."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from starflow.runtime.bundle.bundle import Bundle, sha256
from starflow.runtime.bundle.selection import Selection, select
from starflow.runtime.plain.atomic_write import atomic_folder
from starflow.runtime.plain.errors import BundleError, UsageError
from starflow.runtime.plain.own_folder import BUNDLE
from starflow.runtime.plain.progress import Report, no_report


def copy_bundle(
    bundle: Bundle,
    destination: str | os.PathLike[str],
    variants: Sequence[str] | None = None,
    *,
    replace: bool = False,
    link: bool = False,
    report: Report = no_report,
) -> Selection:
    """Copy a bundle; every copied file is compared with its digest.

    Args:
        bundle: A bundle with all of its shapes and batch sizes.
        destination: Folder to write.
        variants: Names of the variants to copy, with their plans and engines; None copies all of them.
        replace: Whether an existing bundle gives way; any other folder is refused.
        link: Whether files become hard links, which take no space. Commands that change a bundle replace its files, so what is
            linked stays as it is.
        report: Told of every file.

    Raises:
        UsageError: the destination exists or cannot be written, or files cannot be linked there.
        BundleError: there is no such variant, or a file is not what was exported.
    """
    with atomic_folder(destination, BUNDLE, replace=replace, source=bundle.folder) as folder:
        selection = select(bundle, variants)
        bundle.fetch(selection.files)
        for done, file in enumerate(selection.files):
            report(done, len(selection.files), f"copying {file.path}")
            path = _place(folder, file.path)
            (_link if link else shutil.copyfile)(bundle.path(file), path)
            if sha256(path) != file.sha256:
                raise BundleError(f"{bundle.root / file.path}: its content is not what was exported; export it again")
        for name, content in selection.texts.items():
            _place(folder, name).write_bytes(content)
        return selection


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(os.path.realpath(source), destination)
    except OSError as error:
        raise UsageError(f"{destination.name}: cannot be linked there ({error.strerror}); copy it instead") from None


def _place(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
