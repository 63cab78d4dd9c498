"""A bundle on disk: opened, checked, and changed."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open

from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.bundle.graph_spec import FileSpec, GraphSpec
from starflow.runtime.bundle.lock import bundle_lock
from starflow.runtime.bundle.manifest import SCHEMA_VERSION, Place, Variant
from starflow.runtime.bundle.manifest_digest import NAME, is_recorded, record_digests
from starflow.runtime.bundle.manifest_file import Manifest, manifest_content, read_manifest
from starflow.runtime.bundle.network_spec import NetworkSpec
from starflow.runtime.bundle.source import Source, find_source, lies_inside
from starflow.runtime.bundle.versioned_file import read_versioned
from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.errors import BundleError, UsageError
from starflow.runtime.plain.held_folder import HeldFolder
from starflow.runtime.plain.regular_file import open_regular
from starflow.runtime.plain.tensor_header import read_tensor_header

FamilyManifest = TypeVar("FamilyManifest", AutoregressiveManifest, ContinuousManifest)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


Loaded = TypeVar("Loaded")
Stamp = tuple[int, int, int]  # inode, size in bytes, and time of the last change in ns


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files have the sizes its manifest states.

    An open bundle stays what it was: its files are read from the folder that was opened, even if another bundle has taken its
    name, and a file that was changed in place since then is refused. Files of a bundle on the Hugging Face Hub are fetched when
    they are first needed.
    """

    root: Path  # what the user calls it: a folder, or a name that `find_source` knows
    manifest: (
        Manifest  # with one shape only if the bundle comes from `at_shape`, with one batch size if from `at_batch`
    )
    shape: tuple[int, int] | None = None  # height and width of the data if they are not the default ones
    batch: int | None = None  # the batch size if it is not the largest
    _held: HeldFolder | None = field(default=None, repr=False, compare=False)
    _source: Source | None = field(default=None, repr=False, compare=False)
    _stamps: Mapping[str, Stamp] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, root: str | os.PathLike[str], revision: str | None = None) -> "Bundle":
        """Read and check a bundle: sizes but not digests, see `verify_hashes`.

        Args:
            root: A folder; the name of a bundle that comes with starflow; or `org/name` or `org/name@revision` on the Hugging
                Face Hub, of which no more than the manifest is fetched.
            revision: Branch, tag or commit of a bundle on the Hub.

        Raises:
            UsageError: there is no such bundle, or the Hub does not hand it out.
            BundleError: it is not a bundle, has a newer schema, is damaged or truncated, or lacks a file.
        """
        source = find_source(root, revision)
        try:
            held = HeldFolder(source.folder)
        except OSError as error:
            raise BundleError(f"{source.name}: cannot be read ({error.strerror})") from None
        bundle = cls(source.name, _read_manifest(held.path, source.name), _held=held, _source=source)
        stamps = {file.path: bundle._checked(file) for file in bundle.files() if not bundle.is_away(file)}
        return replace(bundle, _stamps=stamps)

    def fetch(self, files: Iterable[FileSpec]) -> None:
        """Fetch those files of a bundle on the Hub that are not there yet, and compare them with their digests.

        Raises:
            UsageError: the Hub does not hand them out.
            BundleError: one of them is not what was exported.
        """
        if self._source is None or self._source.fetch is None:
            return
        away = {file.path: file for file in files if self.is_away(file)}
        if away:
            self._source.fetch(list(away))
            for file in away.values():
                self._checked(file)
                self._compare_digest(file)

    def is_away(self, file: FileSpec) -> bool:
        """Whether a file is on the Hub, and not here yet."""
        on_the_hub = self._source is not None and self._source.fetch is not None
        return on_the_hub and not (self.folder / file.path).is_file()

    @property
    def is_own(self) -> bool:
        """Whether it lies in a folder of the user, not with this package or on the Hub."""
        return self._source is None or self._source.is_own

    def check_own(self) -> None:
        """UsageError if the bundle is not the user's own to change."""
        if not self.is_own:
            raise UsageError(
                f"{self.root}: must stay as it is; change a copy of your own: "
                f"starflow copy {self.root} -o {self.root.name.partition('@')[0]}.bundle"
            )

    def _checked(self, file: FileSpec) -> Stamp:
        """The stamp of a file that has to lie in the bundle and have its size."""
        path, name = self.folder / file.path, self.root / file.path
        # Twice: the folder may get another name in between.
        if not any(lies_inside(path, self.folder) for _ in range(2)):
            raise BundleError(f"{self.root}: the manifest names {file.path}, which lies outside the bundle")
        if not path.is_file():
            raise BundleError(f"{name}: is missing; export the bundle again")
        inode, size, changed = _stamp(path)
        if size != file.bytes:
            raise BundleError(f"{name}: has {size} bytes, the manifest says {file.bytes}; copy or export it again")
        if path.suffix == ".safetensors":
            _check_header(path, name)
        return inode, size, changed

    @property
    def folder(self) -> Path:
        """Where to read and write its files: the folder that was opened, whatever has the name `root` now."""
        if self._held:
            return self._held.path
        return self._source.folder if self._source else self.root

    def path(self, file: FileSpec) -> Path:
        """Where to read a file, which is there then; see `reading` for files that are read long after the bundle was opened."""
        self.fetch([file])
        return self.folder / file.path

    def released(self) -> "Bundle":
        """The same bundle by its name alone, whose folder may be removed when it is replaced."""
        return replace(self, _held=None)

    def with_manifest(self, manifest: Manifest) -> "Bundle":
        """The same folder under another manifest."""
        return replace(self, manifest=manifest)

    @contextmanager
    def reading(self, *files: FileSpec) -> Iterator[Path]:
        """Read files as they were when the bundle was opened; yields the path of the first one.

        Raises:
            BundleError: one of them was changed before it was read, or meanwhile.
        """
        self.fetch(files)
        self._check_unchanged(files)
        try:
            yield self.path(files[0])
        finally:
            self._check_unchanged(files)

    def _check_unchanged(self, files: Sequence[FileSpec]) -> None:
        for file in files:
            try:
                unchanged = self._stamps.get(file.path) in (None, _stamp(self.path(file)))
            except OSError:
                unchanged = False
            if not unchanged:
                raise BundleError(f"{self.root / file.path}: changed since the bundle was opened; open it again")

    def load(self, graph: GraphSpec | NetworkSpec, load: Callable[[Path], Loaded]) -> Loaded:
        """Load a graph, whose digest is checked, and its weights.

        Args:
            graph: One of the bundle's graphs.
            load: Loads the graph of a path, and the weights that lie relative to it.

        Raises:
            BundleError: the graph is not what was exported, or either file was changed.
        """
        if graph.file.sha256:  # a candidate, which a calibration tries, has none
            self.content(graph.file)
        place = self.folder.resolve()
        with self.reading(graph.file, self._weights(graph)) as path:
            try:
                return load(path)
            except Exception:
                if self.folder.resolve() == place:
                    raise
                return load(path)  # the folder got another name meanwhile, and a loader may check where its files lie

    def _weights(self, graph: GraphSpec | NetworkSpec) -> FileSpec:
        if isinstance(graph, NetworkSpec):
            return graph.weights
        return next((each.weights for each in self.manifest.variants if graph in each.graphs), graph.file)

    def content(self, file: FileSpec) -> bytes:
        """The content of a small file, compared with its digest.

        Raises:
            BundleError: it is not what was exported.
        """
        with self.reading(file) as path, open_regular(path) as opened:
            content = opened.read(file.bytes + 1)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise BundleError(_not_exported(self.root / file.path))
        return content

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
            return replace(self, manifest=self.manifest.at_shape(*sizes[0])) if sizes else self
        other = self.shape if shape == sizes[0] else shape
        return replace(self, manifest=self.manifest.at_shape(*shape), shape=other)

    def at_batch(self, batch: int | None) -> "Bundle":
        """The bundle for batches of one size only, at its default shape; None is the largest size.

        Raises:
            UsageError: it has no such batch size.
        """
        largest = self.manifest.batch
        if batch is None:
            batch = largest
        return replace(self, manifest=self.manifest.at_batch(batch), batch=self.batch if batch == largest else batch)

    @property
    def place(self) -> Place:
        """The shape and the batch size that `at_shape` and `at_batch` chose."""
        return Place(self.shape, self.batch)

    def at(self, place: Place) -> "Bundle":
        """The bundle for one shape and one batch size only."""
        return self.at_shape(place.shape).at_batch(place.batch)

    def places(self) -> "list[Bundle]":
        """The bundle at each shape and batch size it has, the default shape and the largest batch first."""
        shapes = [self.at_shape(size) for size in self.manifest.sizes] or [self]
        return [bundle.at_batch(batch) for bundle in shapes for batch in bundle.manifest.batch_sizes]

    def files(self) -> Iterator[FileSpec]:
        """Every file the manifest names, each once."""
        return iter({file.path: file for file in self.manifest.files()}.values())

    @property
    def is_current(self) -> bool:
        """Whether its name still leads to the folder that was opened."""
        return self._held is None or self._held.is_current

    def verify_hashes(self) -> None:
        """Compare every file that is there with its digest; those of a bundle on the Hub are compared when they are fetched.

        Raises:
            BundleError: a file's content changed.
        """
        for file in self.files():
            if not self.is_away(file):
                self._compare_digest(file)

    def _compare_digest(self, file: FileSpec) -> None:
        if sha256(self.folder / file.path) != file.sha256:
            raise BundleError(_not_exported(self.root / file.path))

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
def changing_manifest(bundle: Bundle, *relied_on: str) -> Iterator[Manifest]:
    """Read the manifest and keep other processes from changing it, until `replace_manifest` has written the new one.

    Args:
        bundle: An open bundle.
        relied_on: Names of variants that what will be written was derived from.

    Raises:
        UsageError: the bundle cannot be written.
        BundleError: another bundle has its name by now, a variant relied on was replaced, or its file system has no locks.
    """
    with bundle_lock(bundle.folder, "manifest"):
        manifest = _read_manifest(bundle.folder, bundle.root)
        same = bundle.is_current and manifest.provenance == bundle.manifest.provenance
        for name in relied_on if same else ():
            present = bundle.with_manifest(manifest).at(bundle.place).manifest.variants
            same = same and bundle.variant(name, "") in present
        if not same:
            raise BundleError(f"{bundle.root}: was replaced meanwhile, so nothing was written; run the command again")
        yield manifest


def replace_manifest(bundle: Bundle, manifest: Manifest) -> None:
    """Replace the manifest of a bundle in one operation, so that the bundle is whole at any time.

    Raises:
        UsageError: the bundle cannot be written.
    """
    path, content = bundle.folder / "manifest.json", manifest_content(manifest)
    record_digests(bundle.folder, path.read_bytes(), content)
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
    record_digests(bundle.folder, content)


def _read_manifest(folder: Path, root: Path) -> Manifest:
    path = folder / "manifest.json"
    if not path.exists():
        raise BundleError(f"{root}: has no manifest.json; a bundle is a folder written by `starflow export`")
    return read_versioned(
        path,
        read_manifest,
        SCHEMA_VERSION,
        name=root / "manifest.json",
        recorded=partial(is_recorded, folder),
        again="copy or export the bundle again",
        otherwise=f"remove {NAME} to open it as it is",
        newer="install a newer starflow",
        known_fields=(*AutoregressiveManifest.model_fields, *ContinuousManifest.model_fields),
    )


def _check_header(path: Path, name: Path) -> None:
    """Read the header of a weight file: nothing else does, since graphs know where their weights lie.

    Raises:
        BundleError: it is damaged, and so may be the weights behind it.
    """
    try:
        read_tensor_header(path)
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleError(f"{name}: its header is damaged ({error!s:.200}); copy or export it again") from None


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _not_exported(name: Path) -> str:
    return f"{name}: its content is not what was exported; copy or export it again"
