"""`build.json`: what the engines of one target and variant were built from and for.

Engines are derived from a bundle's graphs, so the manifest does not name them: they may come, go and be rebuilt without the
bundle ever being invalid. They lie in `engines/<target>/<variant>/`, beside their `build.json`, which is replaced last.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from starflow.runtime.bundle import Bundle
from starflow.runtime.errors import BundleError
from starflow.runtime.manifest import FileSpec, Part
from starflow.runtime.tensorrt_flavour import FlavourName
from starflow.runtime.validation import one_line

BUILD_SCHEMA_VERSION = 1
ENGINES = "engines"


class Profile(Part):
    """An optimisation profile: numbers of tokens S one run may have, and the one it is tuned for."""

    minimum: int = Field(ge=1)
    optimum: int = Field(ge=1)
    maximum: int = Field(ge=1)


class BuildOptions(Part):
    """What the user may choose; None leaves it to TensorRT. `workspace_bytes` is scratch memory on the device."""

    workspace_bytes: int | None = None
    optimization_level: int | None = None


class EngineSpec(Part):
    """The engine of one flow block.

    `key` is the SHA-256 over everything the engine was built from: graph, weights, flavour, version, compute capabilities,
    profiles and options. Engines are not reproducible byte by byte, so a build is recognised by its inputs.
    """

    block: int = Field(ge=0)
    file: FileSpec
    key: str = Field(pattern=r"^[0-9a-f]{64}$")


class BuildRecord(Part):
    """`build.json`. Paths are relative to the bundle's root; compute capabilities are strings such as "8.9"."""

    schema_version: Literal[1]
    flavour: FlavourName
    version: str
    compute_capabilities: tuple[str, ...] = Field(min_length=1)
    variant: str
    profiles: tuple[Profile, ...] = Field(min_length=1)
    options: BuildOptions
    engines: tuple[EngineSpec, ...]
    created: str

    @property
    def target(self) -> str:
        """The target's name in paths and messages: `tensorrt-rtx-8.9+12.0`."""
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


def target_name(flavour: FlavourName, compute_capabilities: tuple[str, ...]) -> str:
    """`tensorrt-rtx-8.9+12.0`."""
    return f"{flavour}-{'+'.join(compute_capabilities)}"


def build_folder(bundle: Bundle, target: str, variant: str) -> Path:
    """Where the engines of a target and variant lie."""
    return bundle.root / ENGINES / target / variant


def read_builds(bundle: Bundle) -> Iterator[BuildRecord]:
    """Every build in a bundle, in the order of their paths.

    Raises:
        BundleError: a build.json is damaged or of a newer schema.
    """
    for path in sorted((bundle.root / ENGINES).glob("*/*/build.json")):
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
