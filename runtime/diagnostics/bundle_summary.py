"""A bundle in a few facts, for `starflow inspect`: sentences for people, and the numbers in them for programs."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from starflow.runtime.bundle.build_record import BuildRecord, read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.bytes_read import cache_bytes
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.bundle.network_build import NetworkBuildRecord, read_network_builds
from starflow.runtime.bundle.network_spec import AutoencoderSpec, StudentSpec, TextSpec
from starflow.runtime.diagnostics.memory_use import predict_memory
from starflow.runtime.plain.caption_template import CAPTION
from starflow.runtime.plans.calibrated_decode_plan import CalibratedDecodePlan
from starflow.runtime.plans.calibrated_integration_plan import CalibratedIntegrationPlan

SENTENCES = (
    "bundle", "model", "data", "condition", "text", "decoder", "guidance", "denoisers", "students", "shapes", "batch", "batches",
    "checkpoint", "made",
)  # fmt: skip
"""Keys of a summary that are printed as they are, in this order; students are a line each."""


def summarise(bundle: Bundle, variants: Sequence[Variant]) -> dict[str, Any]:
    """What a bundle holds, as plain values."""
    manifest, model = bundle.manifest, bundle.manifest.model
    return {
        "bundle": str(bundle.root),
        **_family(manifest),
        "condition": _condition(manifest),
        **_side_networks(manifest),
        "batch": manifest.batch,
        **({"batches": ", ".join(map(str, manifest.batch_sizes[::-1]))} if manifest.batches else {}),
        "batch_sizes": list(manifest.batch_sizes[::-1]),
        "bytes": sum(file.bytes for file in bundle.files()),
        "checkpoint": f"sha256 {manifest.provenance.checkpoint_sha256[:16]}",
        "made": f"{manifest.provenance.created}, "
        + ", ".join(f"{tool} {version}" for tool, version in manifest.provenance.tools.items()),
        "family": model.family,
        "parameters": model.parameters,
        "data_shape": list(model.data_shape),
        "guided": manifest.guided,
        "num_classes": manifest.conditioning.num_classes,
        "conditioning": manifest.conditioning.model_dump(mode="json"),
        "plans": [_plan(spec) for spec in manifest.plans],
        "variants": [_variant(bundle, variant) for variant in variants],
        "engines": [_build(record) for record in read_builds(bundle)],
        "network_engines": [_network_build(record) for record in read_network_builds(bundle)],
    }


def _family(manifest: Manifest) -> dict[str, Any]:
    """What only one of the families has, or says in its own way."""
    shape = "x".join(map(str, manifest.model.data_shape))
    if isinstance(manifest, ContinuousManifest):
        flow = manifest.model
        return {
            "model": f"{flow.family}, {flow.network}, {flow.parameters:,} parameters",
            "data": f"{shape} {'points' if manifest.output == 'points' else manifest.image.mode}",
            "guidance": "linear rule" if manifest.guided else "none",
        }
    model, guidance = manifest.model, manifest.guidance
    blocks = f"{guidance.rule} rule in flow blocks {', '.join(map(str, guidance.blocks))}" if guidance else "none"
    denoisers = [f"{spec.kind}-{spec.precision}" for spec in manifest.denoisers]
    sizes = [f"{height}x{width}" for height, width in manifest.sizes]
    return {
        "model": f"{model.family}, {model.parameters:,} parameters, trained with noise of {model.noise_std:g}",
        "data": f"{shape} {manifest.image.mode}, {model.tokens} tokens of {model.token_dim} (patch {model.patch_size})",
        "guidance": blocks,
        **({"denoisers": ", ".join(denoisers)} if denoisers else {}),
        **({"students": "\n".join(map(_student, manifest.students))} if manifest.students else {}),
        **({"shapes": ", ".join(sizes)} if manifest.shapes else {}),
        "sizes": [list(size) for size in manifest.sizes],
        **{name: getattr(model, name) for name in ("noise_std", "tokens", "token_dim", "patch_size")},
    }


def _side_networks(manifest: Manifest) -> dict[str, Any]:
    """The networks beside the flow, where the bundle holds them."""
    text, autoencoder = manifest.text, manifest.autoencoder
    facts: dict[str, Any] = {}
    if text:
        facts |= {"text": _text(text), "text_encoder_bytes": text.encoder.weights.bytes}
    if autoencoder:
        weights = autoencoder.decoders[0].network.weights
        facts |= {"decoder": _decoder(autoencoder, weights.bytes), "decoder_bytes": weights.bytes}
    return facts


def _student(student: StudentSpec) -> str:
    low, high = student.guidance
    size = f"{student.network.weights.bytes / 2**20:.1f} MiB"
    return f"flow block {student.block}, {size}, guidance {low:g} to {high:g}; {student.figures or 'not measured'}"


def _plan(spec: CalibratedDecodePlan | CalibratedIntegrationPlan) -> dict[str, Any]:
    if isinstance(spec, CalibratedIntegrationPlan):
        words, without = str(spec.plan), spec.default_milliseconds
    else:
        blocks = [str(block.block) for block in spec.blocks]
        words, without = f"flow block{'s' * (len(blocks) > 1)} {', '.join(blocks)}", spec.sequential_milliseconds
    figures = ("backend", "variant", "budget", "error", "images", "guidance", "passes", "milliseconds")
    return {"plan": words, "without_plan_milliseconds": without} | {name: getattr(spec, name) for name in figures}


def _variant(bundle: Bundle, variant: Variant) -> dict[str, Any]:
    manifest, peaks, quantization = bundle.manifest, variant.activation_peaks, variant.quantization
    facts: dict[str, Any] = {
        "name": variant.name,
        "lowering": variant.lowering,
        "precision": variant.precision,
        "weight_file_bytes": variant.weights.bytes,
        "memory_bytes": predict_memory(bundle, variant).total,
        "largest_activation": max(peaks.values()) if peaks else None,
        "quantization": None,
        "students": _students_of(bundle, variant),
    }
    if quantization:
        facts["quantization"] = quantization.model_dump(mode="json") | {
            "matrices": dict(Counter(quantization.matrices.values()))
        }
    if isinstance(manifest, ContinuousManifest):  # one network, of which every pass reads all weights
        graph, rows = bundle.graph(variant, 0), manifest.batch * (2 if manifest.guided else 1)
        return facts | {"rows": rows, "weight_bytes": graph.weight_bytes, "graph": graph.file.path, "blocks": []}
    graphs = {graph.block: graph for graph in variant.graphs}
    facts["blocks"], model = [], manifest.model
    for block in reversed(manifest.blocks):
        own = graphs.get(block.index)
        caches = [spec for spec in own.inputs if spec.role == "cache"] if own else []
        deep = block.index == len(manifest.blocks) - 1
        facts["blocks"].append(
            {
                "block": block.index,
                "deep": deep,
                "top": deep,  # its name before
                **block.model_dump(include={"reversed", "identity", "rows", "capacity", "prefix"}),
                "patch": list(block.patch_in(model)),
                "layers": len(caches) // 2,
                "weight_bytes": own.weight_bytes if own else 0,
                "cache_bytes": cache_bytes(own) if own else 0,
                "cache_shape": list(caches[0].shape) if caches else [],
                "graph": own.file.path if own else None,
            }
        )
    return facts


def _students_of(bundle: Bundle, variant: Variant) -> list[dict[str, Any]]:
    """The students in 8 bits that a variant runs, at each batch size."""
    sizes = (bundle.manifest.at_batch(batch) for batch in bundle.manifest.batch_sizes)
    return [
        {
            "block": each.block,
            "batch": size.batch,
            "bytes": each.network.weights.bytes,
            "error": each.error,
            "time": each.time,
        }
        for size in sizes
        for own in size.variants
        if own.name == variant.name
        for each in own.students
    ]


def _build(record: BuildRecord) -> dict[str, Any]:
    return {
        "target": record.target,
        "variant": record.variant,
        "version": record.version,
        "profile_tokens": [profile.maximum for profile in record.profiles],
        "bytes": sum(engine.file.bytes for engine in record.engines),
        "created": record.created,
    }


def _network_build(record: NetworkBuildRecord) -> dict[str, Any]:
    return {
        "target": record.target,
        "version": record.version,
        "networks": [engine.model_dump(include={"graph", "precision", "error"}) for engine in record.engines],
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


def _decoder(autoencoder: AutoencoderSpec, count: int) -> str:
    shape = "x".join(map(str, autoencoder.pixel_shape))
    noisy = [f"{decoder.noise_std:g}" for decoder in autoencoder.decoders if decoder.noise_std]
    also = [f"one for latents with noise of {noisy[0]}" if noisy else "", "encoder" if autoencoder.encoder else ""]
    return ", ".join(["latents to " + shape, *filter(None, also), f"{count / 2**20:.1f} MiB"])
