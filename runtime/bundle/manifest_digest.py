"""`manifest.sha256`, by which a changed byte of `manifest.json` is noticed; `sha256sum -c manifest.sha256` reads it, too.

The manifest states the digest of every other file. While it is replaced, the file names the old one and the new one, so
that a process may be killed at any time. Bundles of older versions lack it, and are opened as they are.
"""

import hashlib
from pathlib import Path

from starflow.runtime.plain.atomic_write import write_text
from starflow.runtime.plain.regular_file import open_regular

NAME = "manifest.sha256"
MOST_BYTES = 4096


def record_digests(folder: Path, *manifests: bytes) -> None:
    """Write the digests that the manifest of a bundle may have; errors are those of `atomic_file`."""
    write_text(folder / NAME, digest_lines(*manifests).decode())


def digest_lines(*manifests: bytes) -> bytes:
    """The content of `manifest.sha256` for the manifests that a bundle may have."""
    return "".join(f"{_sha256(content)}  manifest.json\n" for content in manifests).encode()


def is_recorded(folder: Path, manifest: bytes) -> bool:
    """Whether this is the manifest that was written, as far as the bundle says.

    Raises:
        OSError: the digest cannot be read.
    """
    path = folder / NAME
    if not path.exists():
        return True
    with open_regular(path) as file:
        return _sha256(manifest).encode() in file.read(MOST_BYTES).split()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
