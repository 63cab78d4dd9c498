"""The parts of a manifest that both families of flows share. `docs/bundle.md` explains every field."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, model_validator

from starflow.runtime.bundle.graph_spec import FileSpec, GraphSpec
from starflow.runtime.bundle.network_spec import AutoencoderSpec, DenoiserSpec, NetworkSpec, TextSpec
from starflow.runtime.plain.validation import Part
from starflow.runtime.plans.calibrated_plan import CalibratedPlan

SCHEMA_VERSION = 1


class Quantization(Part):
    """How the weights of a variant were quantised, and the error this causes.

    An error is ||x - exact|| / ||exact|| over finished samples. `exact` comes from the same noise and the same model with exact
    weights.

    Attributes:
        source: Variant whose weights were quantised.
        budget: Largest error allowed; null if weights were rounded without measuring the error.
        error: Measured error; null if it was not measured.
        plain_error: Error if every matrix is rounded to the nearest code, without calibration; null if a sample was not finite,
            or none was made.
        images: Number of samples the errors were measured on.
        guidance: Guidance weight of these samples.
        matrices: Type of each weight matrix that can be quantised; `kept` is the type of the source.
        caches: Flow blocks whose key and value caches have 8 bits, with one scale for each channel.
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

    Attributes:
        activation_peaks: Largest magnitudes seen at export, by transformer layer and projection; for fp16 variants, since
            float16 ends at 65504.
        quantization: For variants that `starflow calibrate --weights` made.
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

    Attributes:
        kind: `class-token` is one one-hot token of width num_classes + 1, whose last index is the null class. `class-label` is
            an index, where num_classes is the null class. `features` are `tokens` vectors of `width` values from the caller.
    """

    kind: Literal["none", "class-token", "class-label", "features"]
    num_classes: int = 0
    class_names: tuple[str, ...] | None = None
    tokens: int = 0
    width: int = 0


class ImageSpec(Part):
    """From data to pixels: value / scale + shift, then [-1, 1] to 8 bits. Mode `latent` means that there are no pixels."""

    mode: Literal["L", "RGB", "latent"]
    scale: float
    shift: float


class Provenance(Part):
    """The origin of a bundle."""

    checkpoint_sha256: str
    created: str
    tools: dict[str, str]


class FlowSummary(Part):
    """The model the bundle was made from. `data_shape` is [C, H, W], or [D] for points."""

    data_shape: tuple[int, ...]


OutputKind = Literal["images", "latents", "points"]


class FlowManifest(Part):
    """The fields that both families share.

    Attributes:
        family_name: The family, as messages call it.
    """

    family_name: ClassVar[str]

    schema_version: Literal[1]
    model: FlowSummary
    image: ImageSpec
    conditioning: ConditioningSpec
    batch: int = Field(gt=0)
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    provenance: Provenance
    text: TextSpec | None = None
    autoencoder: AutoencoderSpec | None = None
    denoisers: tuple[DenoiserSpec, ...] = ()
    plans: tuple[CalibratedPlan, ...] = ()

    @model_validator(mode="after")
    def _plans_fit(self) -> "FlowManifest":
        """Every plan belongs to a variant of the bundle."""
        named = {variant.name for variant in self.variants}
        for plan in self.plans:
            if plan.variant not in named:
                raise ValueError(f"plans: found variant {plan.variant}; there are {', '.join(sorted(named))}")
        return self

    @property
    def output(self) -> OutputKind:
        """What the bundle makes: images (by a decoder if the data are latents), latents without a decoder, or points."""
        if self.image.mode != "latent":
            return "images"
        return "points" if len(self.model.data_shape) == 1 else "latents"

    @model_validator(mode="after")
    def _text_fits(self) -> "FlowManifest":
        """The text encoder makes the condition that the model takes."""
        given = self.conditioning
        if self.text and (given.kind, given.tokens) != ("features", self.text.tokens):
            raise ValueError(
                f"text: has {self.text.tokens} tokens, the condition has {given.tokens} of kind {given.kind}"
            )
        shapes = [spec.shape for spec in self.text.encoder.outputs] if self.text else []
        if shapes not in ([], [(1, given.tokens, given.width)]):
            raise ValueError(
                f"text: has features {shapes}, the condition has {given.tokens} tokens of width {given.width}"
            )
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
        """Every file the manifest names; some are named several times."""
        for variant in self.variants:
            yield variant.weights
            yield from (graph.file for graph in variant.graphs)
        for network in self.networks():
            yield from (network.weights, network.file)
        if self.text:
            yield self.text.tokenizer

    def longest_run(self, block: int) -> int:
        """Largest number of tokens S in one run of a block's graph; 1 if its shapes do not depend on S."""
        return 1


def published_schema(model: Any, title: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of a file whose contract is published."""
    schema = TypeAdapter(model).json_schema()
    schema["title"] = title
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
