"""The manifest of a bundle: everything a runtime has to know. Here stands what both families of flows state.

`docs/bundle.md` explains every field.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from starflow.runtime.bundle.graph_spec import FileSpec, GraphSpec
from starflow.runtime.bundle.network_spec import AutoencoderSpec, DenoiserSpec, NetworkSpec, TextSpec
from starflow.runtime.plain.validation import Part

SCHEMA_VERSION = 1


class Quantization(Part):
    """How a variant's weights were quantised, and what it costs.

    Errors are those of whole samples, ||x - exact|| / ||exact|| over `images` images of guidance `guidance`, against the
    same model with exact weights and the same noise.

    Attributes:
        source: Variant it was made from.
        budget: Error that was allowed; null if weights were rounded without measuring it.
        error: Error that was measured, if it was.
        plain_error: Error with every matrix rounded to the nearest code, nothing calibrated and nothing kept; null if a
            sample broke down, or none was made.
        matrices: What every weight matrix that could be quantised became; `kept` has the source's type.
        caches: Flow blocks whose key and value caches are of 8 bits, one scale for each channel.
    """

    source: str
    budget: float | None
    error: float | None
    plain_error: float | None
    images: int
    guidance: float
    matrices: dict[str, Literal["int4", "int8", "int8-wide", "fp8", "kept"]]
    caches: tuple[int, ...] = ()


class Variant(Part):
    """One set of step graphs: a lowering at a precision.

    `activation_peaks`, in fp16 variants, are the largest magnitudes that were seen at export, by transformer layer and
    projection; float16 holds 65504. Variants made by `starflow calibrate --weights` have a `quantization`.
    """

    name: str
    lowering: Literal["portable", "cpu"]
    precision: Literal["fp32", "fp16", "bf16", "int8", "int4", "fp8"]
    weights: FileSpec
    activation_peaks: dict[str, float] | None
    quantization: Quantization | None = None
    graphs: tuple[GraphSpec, ...]


class ConditioningSpec(Part):
    """What the model is conditioned on.

    `class-token`: one one-hot token of width num_classes + 1, the last index being the null class. `class-label`: an
    index, num_classes being the null class. `features`: `tokens` vectors of `width` values given by the caller.
    """

    kind: Literal["none", "class-token", "class-label", "features"]
    num_classes: int = 0
    class_names: tuple[str, ...] | None = None
    tokens: int = 0
    width: int = 0


class ImageSpec(Part):
    """From data to pixels: value / scale + shift, then [-1, 1] to 8 bits; `latent` has no pixels."""

    mode: Literal["L", "RGB", "latent"]
    scale: float
    shift: float


class Provenance(Part):
    """Where a bundle comes from."""

    checkpoint_sha256: str
    created: str
    tools: dict[str, str]


class FlowManifest(Part):
    """What the manifests of both families state."""

    schema_version: Literal[1]
    image: ImageSpec
    conditioning: ConditioningSpec
    batch: int = Field(gt=0)
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    provenance: Provenance
    text: TextSpec | None = None
    autoencoder: AutoencoderSpec | None = None
    denoisers: tuple[DenoiserSpec, ...] = ()

    @model_validator(mode="after")
    def _text_fits(self) -> "FlowManifest":
        """The text encoder makes what the model is conditioned on."""
        given = self.conditioning
        if self.text and (given.kind, given.tokens) != ("features", self.text.tokens):
            raise ValueError(f"text: makes {self.text.tokens} tokens; the condition is {given.tokens} of {given.kind}")
        shapes = [spec.shape for spec in self.text.encoder.outputs] if self.text else []
        if shapes not in ([], [(1, given.tokens, given.width)]):
            raise ValueError(f"text: makes {shapes}; the condition is {given.tokens} tokens of {given.width}")
        return self

    def networks(self) -> Iterator[NetworkSpec]:
        """Every network beside the flow."""
        if self.text:
            yield self.text.encoder
        if self.autoencoder:
            if self.autoencoder.encoder:
                yield self.autoencoder.encoder
            yield from (decoder.network for decoder in self.autoencoder.decoders)
        yield from (denoiser.network for denoiser in self.denoisers)

    def files(self) -> Iterator[FileSpec]:
        """Every file that is named, some of them several times."""
        for variant in self.variants:
            yield variant.weights
            yield from (graph.file for graph in variant.graphs)
        for network in self.networks():
            yield from (network.weights, network.file)
        if self.text:
            yield self.text.tokenizer

    def longest_run(self, block: int) -> int:
        """Most tokens S of one run of a block's graph; 1 where its shapes do not depend on S."""
        return 1


def published_schema(model: Any, title: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of a file whose contract is published."""
    schema = TypeAdapter(model).json_schema()
    schema["title"] = title
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
