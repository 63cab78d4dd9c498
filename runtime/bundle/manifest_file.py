"""`manifest.json` of either family, and its published JSON Schema, `starflow/runtime/schema/manifest-1.json`."""

from typing import Any

from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.bundle.manifest import SCHEMA_VERSION, published_schema

Manifest = AutoregressiveManifest | ContinuousManifest


def without_pictures(manifest: Manifest) -> str | None:
    """What a bundle makes, if it is not images: `points`, or `latents without a decoder`."""
    if manifest.image.mode != "latent":
        return None
    return "points" if len(manifest.model.data_shape) == 1 else "latents without a decoder"


def read_manifest(content: Any) -> Manifest:
    """The manifest in some JSON: that of an autoregressive flow unless its model says otherwise.

    Raises:
        ValidationError: it is none.
    """
    model = content.get("model") if isinstance(content, dict) else None
    continuous = isinstance(model, dict) and model.get("family") == "continuous-flow"
    return (ContinuousManifest if continuous else AutoregressiveManifest).model_validate(content)


def published_manifest_schema() -> dict[str, Any]:
    """JSON Schema of `manifest.json`, as published in schema/manifest-1.json."""
    return published_schema(Manifest, f"starflow bundle manifest, schema version {SCHEMA_VERSION}")
