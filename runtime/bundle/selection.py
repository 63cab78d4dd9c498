"""What a copy of a bundle holds: all of it, or some of its variants with their plans and engines."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pydantic import ValidationError

from starflow.runtime.bundle.build_record import build_folder, check_engine_file, read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import FileSpec
from starflow.runtime.bundle.manifest_digest import NAME, digest_lines
from starflow.runtime.bundle.manifest_file import Manifest, manifest_content
from starflow.runtime.bundle.named_network import networks_of
from starflow.runtime.bundle.network_build import RECORD, check_network_engine, networks_folder, read_network_builds
from starflow.runtime.plain.errors import BundleError
from starflow.runtime.plain.validation import one_line


@dataclass(frozen=True)
class Selection:
    """The files of a bundle with some of its variants.

    Attributes:
        manifest: The manifest for these variants.
        texts: Content of the small files that describe the others, by path.
        files: The others, each once.
    """

    manifest: Manifest
    texts: dict[str, bytes]
    files: tuple[FileSpec, ...]

    @property
    def bytes(self) -> int:
        """The size of it all."""
        return sum(map(len, self.texts.values())) + sum(file.bytes for file in self.files)


def select(bundle: Bundle, variants: Sequence[str] | None = None) -> Selection:
    """Choose what a copy holds.

    Args:
        bundle: A bundle with all of its shapes and batch sizes.
        variants: Names of variants; None keeps all of them.

    Raises:
        BundleError: there is no such variant, or an engine is damaged.
    """
    manifest = bundle.manifest if variants is None else _with_variants(bundle, variants)
    content = manifest_content(manifest)
    texts = {"manifest.json": content, NAME: digest_lines(content)}
    files = {file.path: file for file in manifest.files()}
    names = {variant.name for variant in manifest.variants}
    for place in bundle.places():
        for record in read_builds(place):
            if record.variant in names:
                path = build_folder(place, record.target, record.variant) / "build.json"
                texts[PurePosixPath(path.relative_to(bundle.folder)).as_posix()] = path.read_bytes()
                for engine in record.engines:
                    check_engine_file(place, record, engine)
                    files[engine.file.path] = engine.file
    networks = {each.spec.file.path: each for place in bundle.places() for each in networks_of(place.manifest)}
    for networks_record in read_network_builds(bundle):
        path = networks_folder(bundle, networks_record.target) / RECORD
        texts[PurePosixPath(path.relative_to(bundle.folder)).as_posix()] = path.read_bytes()
        for network_engine in networks_record.engines:
            if network_engine.graph not in networks:
                raise BundleError(
                    f"{bundle.root / network_engine.file.path}: is of {network_engine.graph}, which the manifest does not name; "
                    f"build again: {networks_record.build_command(bundle)}"
                )
            check_network_engine(bundle, networks_record, network_engine, networks[network_engine.graph])
            files[network_engine.file.path] = network_engine.file
    return Selection(manifest, texts, tuple(files.values()))


def _with_variants(bundle: Bundle, names: Iterable[str]) -> Manifest:
    chosen = {bundle.variant(name, "").name for name in names}
    changes = {}
    for place in bundle.places():
        kept = tuple(variant for variant in place.manifest.variants if variant.name in chosen)
        plans = tuple(plan for plan in place.manifest.plans if plan.variant in chosen)
        changes[place.place] = {"variants": kept, "plans": plans}
    try:
        return bundle.manifest.replaced(changes)
    except ValidationError as error:
        raise BundleError(f"{bundle.root}: {one_line(error)}") from None
