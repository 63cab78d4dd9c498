"""`build.json`: what the engines of one target and variant were built from and for.

Engines are derived from a bundle's graphs, so the manifest does not name them: they may come, go and be rebuilt without the
bundle ever being invalid. They lie in `engines/<target>/<variant>/`, beside their `build.json`, which is replaced last.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from starflow.runtime.bundle.bundle import Bundle, sha256
from starflow.runtime.bundle.graph_spec import FileSpec
from starflow.runtime.bundle.manifest import published_schema
from starflow.runtime.plain.errors import BundleError
from starflow.runtime.plain.validation import Part, one_line

FlavourName = Literal["tensorrt", "tensorrt-rtx"]

BUILD_SCHEMA_VERSION = 1
ENGINES = "engines"


class Profile(Part):
    """An optimisation profile: numbers of tokens S one run may have, and the one it is tuned for."""

    minimum: int = Field(ge=1)
    optimum: int = Field(ge=1)
    maximum: int = Field(ge=1)

    def within(self, longest: int) -> "Profile":
        """What it is for a graph none of whose runs has more than `longest` tokens."""
        return Profile(
            minimum=min(self.minimum, longest),
            optimum=min(self.optimum, longest),
            maximum=min(self.maximum, longest),
        )


class BuildOptions(Part):
    """What the user may choose; None leaves it to TensorRT. `workspace_bytes` is scratch memory on the device."""

    workspace_bytes: int | None = None
    optimization_level: int | None = None


class BuildConfig(Part):
    """Everything but a graph and its weights that an engine depends on.

    Attributes:
        flavour, version: The TensorRT that builds; engines load in the very same release only.
        compute_capabilities: What the engines run on, strings such as "8.9".
        variant: The variant whose graphs are built.
        profiles: Optimisation profiles, the same for all of its engines.
        options: What the user chose.
    """

    flavour: FlavourName
    version: str
    compute_capabilities: tuple[str, ...] = Field(min_length=1)
    variant: str
    profiles: tuple[Profile, ...] = Field(min_length=1)
    options: BuildOptions

    @property
    def target(self) -> str:
        """The target's name in paths and messages: `tensorrt-rtx-8.9_12.0`."""
        return target_name(self.flavour, self.compute_capabilities)

    @property
    def max_tokens(self) -> int:
        """Most tokens of one run."""
        return max(profile.maximum for profile in self.profiles)

    def profile_for(self, count: int) -> int:
        """Index of the tightest profile that takes S = `count`."""
        fitting = [
            (profile.maximum, index)
            for index, profile in enumerate(self.profiles)
            if profile.minimum <= count <= profile.maximum
        ]
        if not fitting:
            raise BundleError(
                f"the engines of {self.target} take runs of at most {self.max_tokens} tokens, not {count}; "
                f"build again with --profile-tokens ...,{count}"
            )
        return min(fitting)[1]

    def key(self, bundle: Bundle, block: int) -> str:
        """SHA-256 that names the engine of a flow block by all it is built from.

        Graph and weights count by the digests in the manifest. Engines are not reproducible byte by byte, so a build is
        recognised by its inputs.

        Raises:
            BundleError: the bundle has no such variant, or no graph of the block.
        """
        variant = bundle.variant(self.variant, "portable")
        inputs = self.model_dump(mode="json", exclude={"variant"}, include=set(BuildConfig.model_fields))
        inputs |= {"graph": bundle.graph(variant, block).file.sha256, "weights": variant.weights.sha256}
        return hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def command(self, bundle: Bundle) -> str:
        """The command line that makes this build."""
        named = "" if self.flavour == "tensorrt" else f":{','.join(self.compute_capabilities)}"
        tokens = ",".join(str(profile.optimum) for profile in self.profiles)
        words = ["starflow", "build", str(bundle.root), "--target", f"{self.flavour}{named}", "--variant", self.variant]
        words += ["--profile-tokens", tokens]
        words += ["--shape", "x".join(map(str, bundle.shape))] if bundle.shape else []
        if self.options.workspace_bytes is not None:
            words += ["--workspace", str(self.options.workspace_bytes)]
        if self.options.optimization_level is not None:
            words += ["--optimization-level", str(self.options.optimization_level)]
        return shlex.join(words)


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
    """`tensorrt-rtx-8.9_12.0`."""
    return f"{flavour}-{'_'.join(compute_capabilities)}"


def build_folder(bundle: Bundle, target: str, variant: str) -> Path:
    """Where the engines of a target and variant lie."""
    return _engines(bundle) / target / variant


def _engines(bundle: Bundle) -> Path:
    """Where a bundle's engines lie: those for another shape than the default one in a folder of its name."""
    folder = bundle.root / ENGINES
    return folder / "x".join(map(str, bundle.shape)) if bundle.shape else folder


def read_builds(bundle: Bundle) -> Iterator[BuildRecord]:
    """Every build in a bundle, in the order of their paths.

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
    again = "delete its folder and run `starflow build` again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); {again}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > BUILD_SCHEMA_VERSION:
        raise BundleError(f"{path}: has schema {version}, this starflow reads {BUILD_SCHEMA_VERSION}; {again}")
    try:
        return BuildRecord.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{path}: {one_line(error, tuple(BuildRecord.model_fields))}; {again}") from None


def check_engine_file(bundle: Bundle, record: BuildRecord, engine: EngineSpec, *, digest: bool = False) -> Path:
    """The path of an engine, once it is known to be whole and to come from this bundle's graph.

    Args:
        bundle: The bundle.
        record: The build.
        engine: One of its engines.
        digest: Whether to read the whole file and compare its SHA-256 as well.

    Raises:
        BundleError: it is missing, truncated, changed, or was built from another graph, other weights or options.
    """
    path = bundle.root / engine.file.path
    again = f"build again: {record.command(bundle)}"
    if not path.resolve().is_relative_to((bundle.root / ENGINES).resolve()):
        raise BundleError(f"{path}: lies outside the bundle's engines; {again}")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); {again}") from None
    if size != engine.file.bytes:
        raise BundleError(f"{path}: has {size} bytes, build.json says {engine.file.bytes}; {again}")
    if engine.key != record.key(bundle, engine.block):
        raise BundleError(f"{path}: was not built from flow block {engine.block} as it is in this bundle; {again}")
    if digest and sha256(path) != engine.file.sha256:
        raise BundleError(f"{path}: its content is not what was built; {again} --force")
    return path
