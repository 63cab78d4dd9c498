"""`networks.json`: what the engines of the networks beside the flow were built from, and what they run on.

They lie in `engines/<target>/networks/`, those of all shapes and batch sizes together, since many share a network: a text encoder
serves all of them. `networks.json` is written last. A bundle may lack it, or engines of some networks.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from starflow.runtime.bundle.build_record import ENGINES, TargetConfig, build_key, check_built, read_record
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import FileSpec
from starflow.runtime.bundle.manifest import published_schema
from starflow.runtime.bundle.named_network import NamedNetwork
from starflow.runtime.bundle.network_spec import NetworkSpec
from starflow.runtime.plain.validation import Part

NETWORKS_SCHEMA_VERSION = 1
RECORD = "networks.json"
# Of the rules by which a build chooses what is computed in float16. Engines built by other rules are not up to date.
PRECISION_RULES = 1


class NetworkEngineSpec(Part):
    """The engine of one network.

    Attributes:
        graph: Path of the network's graph in the bundle.
        precision: What its products compute in: `fp16` all, `mixed` some in float32, `fp32` all in float32.
        error: Relative error of its output against the graph in float32, on the inputs that the choice was made on.
        key: See `NetworkBuildConfig.key`.
    """

    graph: str
    precision: Literal["fp16", "mixed", "fp32"]
    error: float = Field(ge=0)
    file: FileSpec
    key: str = Field(pattern=r"^[0-9a-f]{64}$")


class NetworkBuildConfig(TargetConfig):
    """Everything the engine of a network depends on besides its graph and weights."""

    def key(self, network: NetworkSpec) -> str:
        """SHA-256 over everything the engine of a network is built from, as in `BuildConfig.key`."""
        inputs = self.model_dump(mode="json", include=set(NetworkBuildConfig.model_fields))
        digests = {"graph": network.file.sha256, "weights": network.weights.sha256}
        return build_key(inputs | digests | {"precision_rules": PRECISION_RULES})

    def command(self, bundle: Bundle, network: NamedNetwork) -> str:
        """The command that builds a network."""
        return self.build_command(bundle, "--networks", network.name)


class NetworkBuildRecord(NetworkBuildConfig):
    """`networks.json`. Paths are relative to the bundle's root."""

    schema_version: Literal[1]
    engines: tuple[NetworkEngineSpec, ...]
    created: str


def published_networks_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `networks.json`, as published in schema/networks-1.json."""
    return published_schema(NetworkBuildRecord, f"starflow network engines, schema version {NETWORKS_SCHEMA_VERSION}")


def networks_folder(bundle: Bundle, target: str) -> Path:
    """Folder of the engines of the networks for a target."""
    return bundle.folder / ENGINES / target / "networks"


def read_network_builds(bundle: Bundle) -> Iterator[NetworkBuildRecord]:
    """Every record of network engines in a bundle, in the order of paths.

    Raises:
        BundleError: one is damaged or of a newer schema.
    """
    for path in sorted((bundle.folder / ENGINES).glob(f"*/networks/{RECORD}")):
        yield read_network_build(path)


def read_network_build(path: Path) -> NetworkBuildRecord:
    """Read one `networks.json`.

    Raises:
        BundleError: it is damaged or of a newer schema.
    """
    return read_record(path, NetworkBuildRecord, NETWORKS_SCHEMA_VERSION)


def check_network_engine(
    bundle: Bundle,
    record: NetworkBuildRecord,
    engine: NetworkEngineSpec,
    network: NamedNetwork,
    *,
    digest: bool = False,
) -> Path:
    """Check that an engine is whole and was built from the bundle's present network, and return its path.

    With `digest` it also compares the SHA-256 of the file, which reads all of it.

    Raises:
        BundleError: the engine is missing, truncated or changed, or was built from another graph, other weights or options.
    """
    current = engine.key == record.key(network.spec)
    of, command = f"graph of the {network.words}", record.command(bundle, network)
    return check_built(bundle, engine.file, current, of, command, record=RECORD, digest=digest)
