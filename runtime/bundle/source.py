"""Where a bundle lies: in a folder, with this package, or on the Hugging Face Hub."""

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from starflow.runtime.bundle.hub_snapshot import HUB_NAME, fetch_files
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.folder_exchange import find_replaced

SHIPPED = Path(__file__).parents[1] / "shipped"  # bundles that come with this package
FIRST = (
    "manifest.json",
    "manifest.sha256",
    "engines/*build.json",
)  # what tells which files to fetch; `*` crosses folders


@dataclass(frozen=True)
class Source:
    """Where a bundle lies.

    Attributes:
        name: What the user calls it.
        folder: The folder to read.
        is_own: Whether the user may change it.
        fetch: Brings files into the folder, by their paths in the bundle; None if all are there.
    """

    name: Path
    folder: Path
    is_own: bool = True
    fetch: Callable[[Sequence[str]], None] | None = None


def find_source(name: str | os.PathLike[str], revision: str | None = None) -> Source:
    """Find a bundle by its name: a folder, else a bundle of this package, else `org/name` or `org/name@revision` on the Hub.

    The Hub is not asked for `org/name` where there is a folder `org`: that is a path with a slip in it.

    Args:
        name: The name.
        revision: Branch, tag or commit of a bundle on the Hub.

    Raises:
        UsageError: there is no such bundle, or the Hub does not hand it out.
    """
    text, folder = os.fspath(name), Path(name)
    find_replaced(folder)
    if folder.is_dir():
        if revision is not None:
            raise UsageError(f"{folder}: is a folder; a revision is for bundles on the Hugging Face Hub")
        return Source(folder, folder)
    if folder.exists():
        raise UsageError(f"{folder}: is a file; a bundle is a folder written by `starflow export`")
    if text in shipped():
        return Source(folder, SHIPPED / text, is_own=False)
    if HUB_NAME.fullmatch(text) and (revision or "@" in text or not folder.parent.is_dir()):
        return _on_the_hub(text, revision)
    raise UsageError(
        f"{folder}: does not exist; a bundle is a folder written by `starflow export`, "
        f"{', '.join(shipped())} (which comes with starflow), or org/name on the Hugging Face Hub"
    )


def shipped() -> tuple[str, ...]:
    """Names of the bundles that come with this package."""
    return tuple(sorted(found.parent.name for found in SHIPPED.glob("*/manifest.json")))


def lies_inside(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder, whatever links lead to it.

    The Hub's cache keeps `snapshots/<commit>/` as links into `blobs/` beside `snapshots`; those are inside as well.
    """
    found, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))  # which bears links that lead in circles
    snapshot = next((each for each in (root, *root.parents) if each.parent.name == "snapshots"), None)
    return found.is_relative_to(root) or (snapshot is not None and found.parent == snapshot.parents[1] / "blobs")


def _on_the_hub(text: str, revision: str | None) -> Source:
    repository, _, named = text.partition("@")
    if revision is not None and named not in ("", revision):
        raise UsageError(f"{text}: names a revision, and so does revision={revision!r}; leave one out")
    revision = named or revision
    folder = fetch_files(repository, revision, FIRST, otherwise=f"{text}: there is no such folder")
    commit = folder.name

    def fetch(paths: Sequence[str]) -> None:
        fetch_files(repository, commit, [glob.escape(path) for path in paths])

    return Source(Path(text), folder, is_own=False, fetch=fetch)
