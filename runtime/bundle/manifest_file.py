"""`manifest.json` of either family, and its published JSON Schema, `starflow/runtime/schema/manifest-1.json`."""

from typing import Any

from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.bundle.manifest import SCHEMA_VERSION, published_schema
from starflow.runtime.bundle.sealed_text import BLANK, seal

Manifest = AutoregressiveManifest | ContinuousManifest


def read_manifest(content: Any) -> Manifest:
    """Read a manifest from parsed JSON: that of an autoregressive flow unless its model says otherwise.

    The digest of the file, which tells nothing about the model, is left out.

    Raises:
        ValidationError: it is not a manifest.
    """
    model = content.get("model") if isinstance(content, dict) else None
    if isinstance(content, dict):
        content = {name: value for name, value in content.items() if name != "manifest_sha256"}
    continuous = isinstance(model, dict) and model.get("family") == "continuous-flow"
    return (ContinuousManifest if continuous else AutoregressiveManifest).model_validate(content)


def manifest_text(manifest: Manifest) -> str:
    """The content of `manifest.json`, with its own digest in `manifest_sha256`; see `sealed_text`."""
    return seal(manifest.model_copy(update={"manifest_sha256": BLANK}).model_dump_json(indent=1) + "\n")


def published_manifest_schema() -> dict[str, Any]:
    """JSON Schema of `manifest.json`, as published in schema/manifest-1.json."""
    return published_schema(Manifest, f"starflow bundle manifest, schema version {SCHEMA_VERSION}")
