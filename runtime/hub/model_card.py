"""The model card of a bundle: metadata that the Hub sorts by, a picture, how to use it, and the figures of its manifest.

The metadata are those of https://huggingface.co/docs/hub/model-cards.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.diagnostics.bundle_summary import SENTENCES, summarise
from starflow.runtime.plain.install_hint import install_hint
from starflow.runtime.reports.tables import mebibytes

PICTURE = "samples.png"
OWN_LINES = ("bundle", "model")  # of the summary, said elsewhere in the card


@dataclass(frozen=True)
class CardFacts:
    """What a card says that the bundle does not.

    Attributes:
        repository: `org/name`.
        license: Identifier of the licence, as the Hub spells it; None leaves it out.
        picture: How the picture was made, in words; None if there is none.
    """

    repository: str
    license: str | None
    picture: str | None


def model_card(bundle: Bundle, facts: CardFacts) -> str:
    """The text of README.md, for a bundle with the manifest that is pushed."""
    from huggingface_hub import ModelCardData

    manifest = bundle.manifest
    summary = summarise(bundle, manifest.variants)
    metadata = ModelCardData(
        library_name="starflow",
        license=facts.license,
        pipeline_tag=_pipeline_tag(manifest),
        tags=[
            "normalizing-flow",
            f"{manifest.family_name}-flow",
            "onnx",
            *(["tensorrt"] if summary["engines"] else []),
        ],
    )
    name = facts.repository.partition("/")[2]
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {name}",
        f"A starflow bundle: {summary['model']}. It runs without torch.",
        *([f"![Samples]({PICTURE})\n\n*{facts.picture}*"] if facts.picture else []),
        "## Use",
        _usage(manifest, facts.repository),
        "## What it holds",
        _table(("", ""), ((key, summary[key]) for key in SENTENCES if key in summary and key not in OWN_LINES)),
        "## Variants",
        _table(("variant", "weights", "memory", "error of its weights"), map(_variant, summary["variants"])),
        *_plans(summary["plans"]),
        *_engines(summary["engines"]),
    ]
    return "\n\n".join(parts) + "\n"


def _pipeline_tag(manifest: Manifest) -> str | None:
    if manifest.output == "points":
        return None
    return "text-to-image" if manifest.text else "unconditional-image-generation"


def _usage(manifest: Manifest, repository: str) -> str:
    kind = manifest.conditioning.kind
    if manifest.text:
        option, call = ' --captions "a red apple"', '["a red apple"]'
    elif kind.startswith("class"):
        option, call = " --labels 0-3", "[0, 1, 2, 3]"
    elif kind == "features":
        option, call = " --condition features.npy", "features"
    else:
        option, call = " --count 4", "count=4"
    output = "images.png" if manifest.output == "images" else "images.png --latents latents.npy"
    extras = "cpu,hub,text" if manifest.text else "cpu,hub"
    sample = "sample" if manifest.output == "images" else "generate"
    if sample == "generate":
        call = "sampler.noise(4)" + ("" if call == "count=4" else f", {call}")
    return (
        f"Install it: {install_hint(extras)}. For NVIDIA GPUs write `gpu` in place of `cpu`.\n\n"
        f"```console\nstarflow sample {repository}{option} --out {output}\n```\n\n"
        "```python\nfrom starflow.runtime import Sampler\n\n"
        f'with Sampler.open("{repository}") as sampler:\n    images = sampler.{sample}({call})\n```'
    )


def _variant(variant: dict[str, Any]) -> Sequence[object]:
    quantization = variant["quantization"]
    error = "none"
    if quantization:
        found = quantization["error"]
        error = "not measured" if found is None else f"{found:.2%} on {quantization['images']} images"
    sizes = (mebibytes(variant[name]) for name in ("weight_file_bytes", "memory_bytes"))
    return (f"`{variant['name']}`", *sizes, error)


def _plans(plans: Sequence[dict[str, Any]]) -> list[str]:
    if not plans:
        return []
    rows = (
        (plan["variant"], plan["backend"], plan["plan"], f"{plan['passes']:.1f}", f"{plan['error']:.2%}")
        for plan in plans
    )
    return ["## Plans", _table(("variant", "backend", "plan", "passes", "error"), rows)]


def _engines(engines: Sequence[dict[str, Any]]) -> list[str]:
    if not engines:
        return []
    rows = ((each["target"], each["variant"], mebibytes(each["bytes"]), each["version"]) for each in engines)
    return ["## Engines", _table(("target", "variant", "size", "TensorRT"), rows)]


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
