"""Opening a bundle: is it one, is it whole, what is in it."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.bundle.graph_spec import FileSpec, GraphSpec
from starflow.runtime.bundle.lock import bundle_lock
from starflow.runtime.bundle.manifest import SCHEMA_VERSION, Variant
from starflow.runtime.bundle.manifest_file import Manifest, read_manifest
from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.errors import BundleError, UsageError
from starflow.runtime.plain.validation import one_line


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files have the sizes its manifest states.

    Attributes:
        root: Its folder.
        manifest: Its manifest; that of one shape, in what `at_shape` returns.
        shape: Height and width of the data where they are not the default ones.
    """

    root: Path
    manifest: Manifest
    shape: tuple[int, int] | None = None

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> "Bundle":
        """Read and check a bundle (sizes, not digests; see `verify_hashes`).

        Raises:
            UsageError: there is no such folder.
            BundleError: not a bundle, of a newer schema, damaged, truncated, or a file is missing.
        """
        root = Path(root)
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise UsageError(f"{root}: {what}; a bundle is a folder written by `starflow export`")
        bundle = cls(root, _read_manifest(root / "manifest.json"))
        for file in bundle.files():
            path = root / file.path
            if not path.resolve().is_relative_to(root.resolve()):
                raise BundleError(f"{root}: the manifest names {file.path}, which lies outside the bundle")
            if not path.is_file():
                raise BundleError(f"{path}: is missing; export the bundle again")
            if path.stat().st_size != file.bytes:
                raise BundleError(
                    f"{path}: has {path.stat().st_size} bytes, the manifest says {file.bytes}; copy or export it again"
                )
        return bundle

    @property
    def autoregressive(self) -> AutoregressiveManifest:
        """The manifest of an autoregressive flow.

        Raises:
            UsageError: it is a continuous flow.
        """
        if not isinstance(self.manifest, AutoregressiveManifest):
            raise UsageError(f"{self.root}: is a continuous flow; this is for autoregressive flows")
        return self.manifest

    @property
    def continuous(self) -> ContinuousManifest:
        """The manifest of a continuous flow.

        Raises:
            UsageError: it is an autoregressive flow.
        """
        if not isinstance(self.manifest, ContinuousManifest):
            raise UsageError(f"{self.root}: is an autoregressive flow; this is for continuous flows")
        return self.manifest

    def at_shape(self, shape: tuple[int, int] | None) -> "Bundle":
        """The bundle for data of one height and width, as if it had no others; None is the default shape.

        Raises:
            UsageError: it has no such shape.
        """
        sizes = self.manifest.sizes
        if shape is None:
            if not sizes:
                return self
            shape = sizes[0]
        return Bundle(self.root, self.manifest.at_shape(*shape), None if shape == sizes[0] else shape)

    def files(self) -> Iterator[FileSpec]:
        """Every file the manifest names, each once."""
        return iter({file.path: file for file in self.manifest.files()}.values())

    def verify_hashes(self) -> None:
        """Compare every file with its digest.

        Raises:
            BundleError: a file's content changed.
        """
        for file in self.files():
            if sha256(self.root / file.path) != file.sha256:
                raise BundleError(
                    f"{self.root / file.path}: its content is not what was exported; copy or export it again"
                )

    def variant(self, name: str | None, lowering: str) -> Variant:
        """The variant called `name`, or the first one of a lowering.

        Raises:
            BundleError: there is none.
        """
        names = ", ".join(variant.name for variant in self.manifest.variants)
        for variant in self.manifest.variants:
            if variant.name == name or (name is None and variant.lowering == lowering):
                return variant
        wanted = f"no variant {name!r}" if name else f"no {lowering} variant"
        raise BundleError(f"{self.root}: has {wanted}; it has {names}")

    def graph(self, variant: Variant, block: int) -> GraphSpec:
        """The step graph of a flow block."""
        for graph in variant.graphs:
            if graph.block == block:
                return graph
        raise BundleError(f"{self.root}: variant {variant.name} has no graph for flow block {block}; export it again")


@contextmanager
def changing_manifest(root: Path) -> Iterator[Manifest]:
    """The manifest as it is now, while nobody else changes it; `replace_manifest` ends the change.

    Raises:
        UsageError: the bundle cannot be written.
        BundleError: its file system has no locks.
    """
    with bundle_lock(root, "manifest"):
        yield _read_manifest(root / "manifest.json")


def replace_manifest(root: Path, manifest: Manifest) -> None:
    """Put another manifest in the place of a bundle's: at once, so that the bundle is whole at any time.

    Raises:
        UsageError: the bundle cannot be written.
    """
    with atomic_file(root / "manifest.json") as temporary:
        temporary.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _read_manifest(path: Path) -> Manifest:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path.parent}: has no manifest.json; a bundle is written by `starflow export`") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: is not JSON ({error}); copy or export the bundle again") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            f"{path}: has schema {version}, this starflow reads {SCHEMA_VERSION}; install a newer starflow-compiler"
        )
    try:
        return read_manifest(content)
    except ValidationError as error:
        fields = (*AutoregressiveManifest.model_fields, *ContinuousManifest.model_fields)
        raise BundleError(f"{path}: {one_line(error, fields)}") from None
