"""A bundle on disk: opened, checked, and changed."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.bundle.graph_spec import FileSpec, GraphSpec
from starflow.runtime.bundle.lock import bundle_lock
from starflow.runtime.bundle.manifest import SCHEMA_VERSION, Variant
from starflow.runtime.bundle.manifest_file import Manifest, read_manifest
from starflow.runtime.bundle.versioned_file import read_versioned
from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.errors import BundleError, UsageError
from starflow.runtime.plain.folder_exchange import find_replaced

FamilyManifest = TypeVar("FamilyManifest", AutoregressiveManifest, ContinuousManifest)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files have the sizes its manifest states.

    Attributes:
        root: Its folder.
        manifest: Its manifest, with one shape only if the bundle comes from `at_shape`.
        shape: Height and width of the data if they are not the default ones, else None.
    """

    root: Path
    manifest: Manifest
    shape: tuple[int, int] | None = None

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> "Bundle":
        """Read and check a bundle: sizes but not digests, see `verify_hashes`.

        Raises:
            UsageError: there is no such folder.
            BundleError: it is not a bundle, has a newer schema, is damaged or truncated, or lacks a file.
        """
        root = Path(root)
        find_replaced(root)
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise UsageError(f"{root}: {what}; a bundle is a folder written by `starflow export`")
        bundle = cls(root, _read_manifest(root / "manifest.json"))
        for file in bundle.files():
            path = root / file.path
            if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
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
        """The manifest of an autoregressive flow; UsageError if the flow is of another family."""
        return self._manifest_of(AutoregressiveManifest)

    @property
    def continuous(self) -> ContinuousManifest:
        """The manifest of a continuous flow; UsageError if the flow is of another family."""
        return self._manifest_of(ContinuousManifest)

    def _manifest_of(self, family: type[FamilyManifest]) -> FamilyManifest:
        if isinstance(self.manifest, family):
            return self.manifest
        found, expected = self.manifest.family_name, family.family_name
        article = "an" if found.startswith("a") else "a"
        raise UsageError(f"{self.root}: is {article} {found} flow; this is for {expected} flows")

    def at_shape(self, shape: tuple[int, int] | None) -> "Bundle":
        """The bundle for data of one height and width only; None is the default shape.

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
        """The variant called `name`, or if `name` is None the first variant of a lowering.

        Raises:
            BundleError: there is no such variant.
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
    """Read the manifest and keep other processes from changing it, until `replace_manifest` has written the new one.

    Raises:
        UsageError: the bundle cannot be written.
        BundleError: its file system has no locks.
    """
    with bundle_lock(root, "manifest"):
        yield _read_manifest(root / "manifest.json")


def replace_manifest(root: Path, manifest: Manifest) -> None:
    """Replace the manifest of a bundle in one operation, so that the bundle is whole at any time.

    Raises:
        UsageError: the bundle cannot be written.
    """
    with atomic_file(root / "manifest.json") as temporary:
        temporary.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _read_manifest(path: Path) -> Manifest:
    if not path.exists():
        raise BundleError(f"{path.parent}: has no manifest.json; a bundle is a folder written by `starflow export`")
    return read_versioned(
        path,
        read_manifest,
        SCHEMA_VERSION,
        again="copy or export the bundle again",
        newer="install a newer starflow",
        known_fields=(*AutoregressiveManifest.model_fields, *ContinuousManifest.model_fields),
    )
