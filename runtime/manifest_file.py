"""`manifest.json` of either family, and its published JSON Schema, `starflow/runtime/schema/manifest-1.json`."""

from typing import Any

from starflow.runtime.continuous_manifest import ContinuousManifest
from starflow.runtime.manifest import SCHEMA_VERSION, Manifest, published_schema

AnyManifest = Manifest | ContinuousManifest


def read_manifest(content: Any) -> AnyManifest:
    """The manifest in some JSON: that of an autoregressive flow unless its model says otherwise.

    Raises:
        ValidationError: it is none.
    """
    model = content.get("model") if isinstance(content, dict) else None
    continuous = isinstance(model, dict) and model.get("family") == "continuous-flow"
    return (ContinuousManifest if continuous else Manifest).model_validate(content)


def published_manifest_schema() -> dict[str, Any]:
    """JSON Schema of `manifest.json`, as published in schema/manifest-1.json."""
    return published_schema(AnyManifest, f"starflow bundle manifest, schema version {SCHEMA_VERSION}")
