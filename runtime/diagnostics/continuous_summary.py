"""What is particular to a continuous flow in the summary of a bundle."""

from typing import Any

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.diagnostics.memory_use import predict_memory


def continuous_facts(manifest: ContinuousManifest) -> dict[str, Any]:
    """Facts about the model."""
    model = manifest.model
    shape = "x".join(map(str, model.data_shape))
    plans = "; ".join(
        f"{spec.backend}, {spec.variant}: {spec.plan}, {spec.passes:g} passes, error {spec.error:.1e}"
        for spec in manifest.plans
    )
    return {
        "model": f"{model.family}, {model.network}, {model.parameters:,} parameters",
        "data": f"{shape} {manifest.image.mode if len(model.data_shape) > 1 else 'points'}",
        "guidance": "linear rule" if manifest.guided else "none",
        "plans": plans or "none",
    }


def continuous_variant(bundle: Bundle, variant: Variant) -> dict[str, Any]:
    """Facts about a variant: one network, of which every pass reads all weights."""
    graph = bundle.graph(variant, 0)
    manifest = bundle.continuous
    peaks = variant.activation_peaks
    return {
        "name": variant.name,
        "weight_file_bytes": variant.weights.bytes,
        "memory_bytes": predict_memory(bundle, variant).total,
        "largest_activation": max(peaks.values()) if peaks else None,
        "rows": manifest.batch * (2 if manifest.guided else 1),
        "weight_bytes": graph.weight_bytes,
        "graph": graph.file.path,
        "blocks": [],
    }
