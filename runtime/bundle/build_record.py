"""`build.json`: what the engines of one target and variant were built from, and what they run on.

Engines are derived from the graphs of a bundle, so the manifest does not name them: they can be added, removed and rebuilt while
the bundle stays valid. They lie in `engines/<target>/<variant>/` next to their `build.json`, which is written last.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from starflow.runtime.bundle.bundle import Bundle, sha256
from starflow.runtime.bundle.graph_spec import FileSpec
from starflow.runtime.bundle.manifest import published_schema
from starflow.runtime.bundle.source import lies_inside
from starflow.runtime.bundle.versioned_file import read_versioned
from starflow.runtime.plain.errors import BundleError
from starflow.runtime.plain.validation import Part

FlavourName = Literal["tensorrt", "tensorrt-rtx"]

BUILD_SCHEMA_VERSION = 1
ENGINES = "engines"
Record = TypeVar("Record", bound=Part)


class Profile(Part):
    """An optimisation profile: the smallest and largest number of tokens S in a run, and the one it is tuned for."""

    minimum: int = Field(ge=1)
    optimum: int = Field(ge=1)
    maximum: int = Field(ge=1)

    def within(self, longest: int) -> "Profile":
        """The profile of a graph whose runs have at most `longest` tokens."""
        return Profile(**{name: min(size, longest) for name, size in self})


class BuildOptions(Part):
    """Options of the user; None leaves the choice to TensorRT. `workspace_bytes` is scratch memory on the device."""

    workspace_bytes: int | None = None
    optimization_level: int | None = None


class TargetConfig(Part):
    """What builds, and for which GPUs.

    Attributes:
        flavour, version: The TensorRT that builds. Engines load in the same release only.
        compute_capabilities: Compute capabilities of the GPUs the engines run on, such as "8.9".
        options: Options of the user.
    """

    flavour: FlavourName
    version: str
    compute_capabilities: tuple[str, ...] = Field(min_length=1)
    options: BuildOptions

    @property
    def target(self) -> str:
        """See `target_name`."""
        return target_name(self.flavour, self.compute_capabilities)

    def build_command(self, bundle: Bundle, *choices: str) -> str:
        """The command that builds what `choices`, further arguments, name."""
        named = "" if self.flavour == "tensorrt" else f":{','.join(self.compute_capabilities)}"
        words = ["starflow", "build", str(bundle.root), "--target", f"{self.flavour}{named}", *choices]
        words += ["--shape", "x".join(map(str, bundle.shape))] if bundle.shape else []
        words += ["--batch", str(bundle.batch)] if bundle.batch else []
        if self.options.workspace_bytes is not None:
            words += ["--workspace", str(self.options.workspace_bytes)]
        if self.options.optimization_level is not None:
            words += ["--optimization-level", str(self.options.optimization_level)]
        return shlex.join(words)


class BuildConfig(TargetConfig):
    """Everything an engine depends on besides its graph and weights.

    Attributes:
        variant: Name of the variant whose graphs are built.
        profiles: Optimisation profiles of all engines.
    """

    variant: str
    profiles: tuple[Profile, ...] = Field(min_length=1)

    @property
    def max_tokens(self) -> int:
        """Largest number of tokens in one run."""
        return max(profile.maximum for profile in self.profiles)

    def profile_for(self, count: int) -> int:
        """Index of the tightest profile that takes S = `count`.

        Raises:
            BundleError: no profile takes it.
        """
        ranges = ((profile.maximum, index, profile.minimum) for index, profile in enumerate(self.profiles))
        fitting = [(maximum, index) for maximum, index, minimum in ranges if minimum <= count <= maximum]
        if not fitting:
            raise BundleError(
                f"the engines of {self.target} take runs of at most {self.max_tokens} tokens, not {count}; "
                f"build again with --profile-tokens ...,{count}"
            )
        return min(fitting)[1]

    def key(self, bundle: Bundle, block: int) -> str:
        """SHA-256 over everything the engine of a flow block is built from.

        Graph and weights enter by their digests in the manifest. Engines are not reproducible byte by byte, so a build is
        identified by its inputs.

        Raises:
            BundleError: the bundle has no such variant, or no graph of the block.
        """
        variant = bundle.variant(self.variant, "portable")
        inputs = self.model_dump(mode="json", exclude={"variant"}, include=set(BuildConfig.model_fields))
        return build_key(
            inputs | {"graph": bundle.graph(variant, block).file.sha256, "weights": variant.weights.sha256}
        )

    def command(self, bundle: Bundle) -> str:
        """The command that makes this build."""
        tokens = ",".join(str(profile.optimum) for profile in self.profiles)
        return self.build_command(bundle, "--variant", self.variant, "--profile-tokens", tokens)


def build_key(inputs: dict[str, Any]) -> str:
    """SHA-256 over what an engine is built from."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class EngineSpec(Part):
    """The engine of one flow block, and the `BuildConfig.key` it was built under."""

    block: int = Field(ge=0)
    file: FileSpec
    key: str = Field(pattern=r"^[0-9a-f]{64}$")


class BuildRecord(BuildConfig):
    """`build.json`. Paths are relative to the bundle's root."""

    schema_version: Literal[1]
    engines: tuple[EngineSpec, ...]
    created: str


def published_build_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `build.json`, as published in schema/build-1.json."""
    return published_schema(BuildRecord, f"starflow build record, schema version {BUILD_SCHEMA_VERSION}")


def target_name(flavour: FlavourName, compute_capabilities: tuple[str, ...]) -> str:
    """Name of a target in paths and messages, such as `tensorrt-rtx-8.9_12.0`."""
    return f"{flavour}-{'_'.join(compute_capabilities)}"


def build_folder(bundle: Bundle, target: str, variant: str) -> Path:
    """Folder of the engines of a target and variant."""
    return _engines(bundle) / target / variant


def _engines(bundle: Bundle) -> Path:
    """Folder of the engines of a bundle; other shapes than the default one, and smaller batches, have folders of their own."""
    folder = bundle.folder / ENGINES
    folder = folder / "x".join(map(str, bundle.shape)) if bundle.shape else folder
    return folder / f"batch{bundle.batch}" if bundle.batch else folder


def read_builds(bundle: Bundle) -> Iterator[BuildRecord]:
    """Every build in a bundle, in the order of paths.

    Raises:
        BundleError: a build.json is damaged or of a newer schema.
    """
    for path in sorted(_engines(bundle).glob("*/*/build.json")):
        yield read_build(path)


def read_build(path: Path) -> BuildRecord:
    """Read one `build.json`.

    Raises:
        BundleError: it is damaged or of a newer schema.
    """
    return read_record(path, BuildRecord, BUILD_SCHEMA_VERSION)


def read_record(path: Path, kind: type[Record], version: int) -> Record:
    """Read a JSON file that a build left.

    Args:
        kind: What it describes.
        version: Newest schema that can be read.

    Raises:
        BundleError: it is damaged or of a newer schema.
    """
    again = "delete its folder and run `starflow build` again"
    fields = tuple(kind.model_fields)
    return read_versioned(path, kind.model_validate, version, again=again, newer=again, known_fields=fields)


def check_engine_file(bundle: Bundle, record: BuildRecord, engine: EngineSpec, *, digest: bool = False) -> Path:
    """Check that an engine is whole and was built from this bundle's graph, and return its path.

    With `digest` it also compares the SHA-256 of the file, which reads all of it.

    Raises:
        BundleError: the engine is missing, truncated or changed, or was built from another graph, other weights or options.
    """
    current = engine.key == record.key(bundle, engine.block)
    of = f"graph of flow block {engine.block}"
    return check_built(bundle, engine.file, current, of, record.command(bundle), record="build.json", digest=digest)


def check_built(
    bundle: Bundle, file: FileSpec, current: bool, of: str, command: str, *, record: str, digest: bool = False
) -> Path:
    """`check_engine_file` for the engine in `file`, which a file called `record` names.

    `current` says whether it was built from what is there now, `of` what that is; `command` builds it again.
    """
    path = bundle.path(file)
    force = ""
    if not lies_inside(path, bundle.folder / ENGINES):
        fault = "lies outside the bundle's engines"
    elif not path.is_file():
        fault = "is missing"
    elif (size := path.stat().st_size) != file.bytes:
        fault = f"has {size} bytes, {record} says {file.bytes}"
    elif not current:
        fault = f"was not built from the present {of}"
    elif digest and sha256(path) != file.sha256:
        fault, force = "its content is not what was built", " --force"
    else:
        return path
    raise BundleError(f"{bundle.root / file.path}: {fault}; build again: {command}{force}")
