"""`manifest.json` of either family, and its published JSON Schema, `starflow/runtime/schema/manifest-3.json`."""

from typing import Any

from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.bundle.manifest import SCHEMA_VERSION, published_schema

Manifest = AutoregressiveManifest | ContinuousManifest


def read_manifest(content: Any) -> Manifest:
    """Read a manifest from parsed JSON: that of an autoregressive flow unless its model says otherwise.

    Raises:
        ValidationError: it is not a manifest.
    """
    model = content.get("model") if isinstance(content, dict) else None
    continuous = isinstance(model, dict) and model.get("family") == "continuous-flow"
    return (ContinuousManifest if continuous else AutoregressiveManifest).model_validate(content)


def manifest_content(manifest: Manifest) -> bytes:
    """The content of `manifest.json`, without the fields that its schema does not know."""
    newer: dict[str, Any] = {}
    if manifest.schema_version < 3:
        place: dict[str, Any] = {"blocks": {"__all__": {"patch"}}, "students": True}
        place |= {"variants": {"__all__": {"quantization": {"timing"}, "students": True}}}
        several = place | {"batches": {"__all__": place}}
        newer = several | {"shapes": {"__all__": several}}
    if manifest.schema_version < 2:
        newer |= {"batches": True, "shapes": {"__all__": place | {"batches": True}}}
    return (manifest.model_dump_json(indent=1, exclude=newer) + "\n").encode()


def published_manifest_schema() -> dict[str, Any]:
    """JSON Schema of `manifest.json`, as published in schema/manifest-3.json."""
    return published_schema(Manifest, f"starflow bundle manifest, schema version {SCHEMA_VERSION}")
