"""A bundle in a few facts, for `starflow inspect` and reports."""

from collections.abc import Sequence
from typing import Any

from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.build_record import BuildRecord, read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.bundle.network_spec import AutoencoderSpec, TextSpec
from starflow.runtime.diagnostics.continuous_summary import continuous_facts, continuous_variant
from starflow.runtime.diagnostics.memory_use import cache_bytes, predict_memory
from starflow.runtime.plain.caption_template import CAPTION


def summarise(bundle: Bundle, variants: Sequence[Variant]) -> dict[str, Any]:
    """What a bundle holds, as plain values."""
    manifest = bundle.manifest
    continuous = isinstance(manifest, ContinuousManifest)
    return {
        "bundle": str(bundle.root),
        **(continuous_facts(manifest) if isinstance(manifest, ContinuousManifest) else _facts(manifest)),
        "condition": _condition(manifest),
        **({"text": _text(manifest.text)} if manifest.text else {}),
        **({"decoder": _decoder(manifest.autoencoder)} if manifest.autoencoder else {}),
        "batch": manifest.batch,
        "bytes": f"{sum(file.bytes for file in bundle.files()):,}",
        "checkpoint": f"sha256 {manifest.provenance.checkpoint_sha256[:16]}",
        "made": f"{manifest.provenance.created}, "
        + ", ".join(f"{tool} {version}" for tool, version in manifest.provenance.tools.items()),
        "num_classes": manifest.conditioning.num_classes,
        "variants": [(continuous_variant if continuous else _variant)(bundle, variant) for variant in variants],
        "engines": [_build(record) for record in read_builds(bundle)],
    }


def _facts(manifest: AutoregressiveManifest) -> dict[str, Any]:
    model = manifest.model
    shapes = [f"{height}x{width}" for height, width in manifest.sizes]
    denoisers = [f"{spec.kind}-{spec.precision}" for spec in manifest.denoisers]
    shape = "x".join(map(str, model.data_shape))
    return {
        "model": f"{model.family}, {model.parameters:,} parameters, trained with noise of {model.noise_std:g}",
        "data": f"{shape} {manifest.image.mode}, {model.tokens} tokens of {model.token_dim} (patch {model.patch_size})",
        "guidance": _guidance(manifest),
        **({"denoisers": ", ".join(denoisers)} if denoisers else {}),
        **({"shapes": ", ".join(shapes)} if manifest.shapes else {}),
    }


def _variant(bundle: Bundle, variant: Variant) -> dict[str, Any]:
    manifest = bundle.autoregressive
    graphs = {graph.block: graph for graph in variant.graphs}
    blocks = []
    for block in reversed(manifest.blocks):
        graph = graphs.get(block.index)
        caches = [spec for spec in graph.inputs if spec.role == "cache"] if graph else []
        blocks.append(
            {
                "block": block.index,
                "top": block.index == len(manifest.blocks) - 1,
                "reversed": block.reversed,
                "identity": block.identity,
                "layers": len(caches) // 2,
                "rows": block.rows,
                "capacity": block.capacity,
                "prefix": block.prefix,
                "weight_bytes": graph.weight_bytes if graph else 0,
                "cache_bytes": cache_bytes(graph) if graph else 0,
                "cache_shape": list(caches[0].shape) if caches else [],
                "graph": graph.file.path if graph else None,
            }
        )
    peaks = variant.activation_peaks
    return {
        "name": variant.name,
        "weight_file_bytes": variant.weights.bytes,
        "memory_bytes": predict_memory(bundle, variant).total,
        "largest_activation": max(peaks.values()) if peaks else None,
        "blocks": blocks,
    }


def _build(record: BuildRecord) -> dict[str, Any]:
    return {
        "target": record.target,
        "variant": record.variant,
        "version": record.version,
        "profile_tokens": [profile.maximum for profile in record.profiles],
        "bytes": sum(engine.file.bytes for engine in record.engines),
        "created": record.created,
    }


def _condition(manifest: Manifest) -> str:
    spec = manifest.conditioning
    if spec.kind == "none":
        return "none"
    if spec.kind == "features":
        return f"features, {spec.tokens} tokens of {spec.width}"
    names = f": {', '.join(spec.class_names)}" if spec.class_names else ""
    return f"{spec.num_classes} classes{names} ({'one token' if spec.kind == 'class-token' else 'a vector'})"


def _text(text: TextSpec) -> str:
    template = "" if text.template == CAPTION else f" in {text.template!r}"
    return (
        f"captions of up to {text.tokens} tokens{template}, encoded by {text.encoder.weights.bytes:,} bytes of weights"
    )


def _decoder(autoencoder: AutoencoderSpec) -> str:
    shape = "x".join(map(str, autoencoder.pixel_shape))
    noisy = [f"{decoder.noise_std:g}" for decoder in autoencoder.decoders if decoder.noise_std]
    also = [f"one for latents with noise of {noisy[0]}" if noisy else "", "encoder" if autoencoder.encoder else ""]
    mebibytes = autoencoder.decoders[0].network.weights.bytes / 2**20
    return ", ".join(["latents to " + shape, *filter(None, also), f"{mebibytes:.1f} MiB"])


def _guidance(manifest: AutoregressiveManifest) -> str:
    if manifest.guidance is None:
        return "none"
    blocks = ", ".join(map(str, manifest.guidance.blocks))
    return f"{manifest.guidance.rule} rule in flow blocks {blocks}"
