"""A copy of a bundle, or links to its files, in a folder of its own."""

import os
import shutil
from pathlib import Path

from starflow.runtime.bundle.build_record import ENGINES
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest_digest import record_digests
from starflow.runtime.bundle.manifest_file import manifest_content
from starflow.runtime.plain.errors import UsageError


def copy_bundle(bundle: Bundle, destination: Path, *, link: bool = False) -> None:
    """Write an open bundle once more, with its engines, as it was when it was opened.

    Args:
        bundle: As `Bundle.open` returns it, with all shapes and batch sizes.
        destination: A new folder.
        link: Whether files become hard links, which take no space. Commands that change a bundle replace its files, so what is
            linked stays as it is.

    Raises:
        UsageError: files cannot be linked there.
        BundleError: a file was changed meanwhile.
    """
    destination.mkdir()
    for file in bundle.files():
        with bundle.reading(file) as path:
            _put(path, destination / file.path, link)
    engines = bundle.folder / ENGINES
    for path in sorted(engines.rglob("*")):
        if path.is_file():
            _put(path, destination / ENGINES / path.relative_to(engines), link)
    content = manifest_content(bundle.manifest)
    (destination / "manifest.json").write_bytes(content)
    record_digests(destination, content)


def _put(path: Path, destination: Path, link: bool) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    if not link:
        shutil.copyfile(path, destination)
        return
    try:
        os.link(os.path.realpath(path), destination)
    except OSError as error:
        raise UsageError(f"{destination.name}: cannot be linked there ({error.strerror}); copy it instead") from None
