"""The parts of a manifest that both families of flows share. `docs/bundle.md` explains every field."""

from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from starflow.runtime.bundle.graph_spec import FileSpec, GraphSpec
from starflow.runtime.bundle.network_spec import AutoencoderSpec, DenoiserSpec, NetworkSpec, TextSpec
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.validation import Part, one_line
from starflow.runtime.plans.calibrated_plan import CalibratedPlan

SCHEMA_VERSION = 3
MOST_VARIANTS = 64  # six precisions and three lowerings make eighteen
MOST_BATCH_SIZES = 16
MOST_CLASSES = 1_000_000  # one-hot vectors of so many classes still fit in memory; ImageNet-21k has 21,841


Lowering = Literal["portable", "cpu", "cuda"]


def schema_version(
    batches: bool,
    own_patches: bool,
    lowerings: Collection[Lowering],
    *,
    students: bool = False,
    newer_quantization: bool = False,
) -> Literal[1, 2, 3]:
    """The oldest schema that has what a bundle has.

    Args:
        batches: Whether it has several batch sizes.
        own_patches: Whether a flow block has patches of its own.
        lowerings: The lowerings of its variants.
        students: Whether a flow block has a student.
        newer_quantization: Whether `Quantization.needs_schema_3` of a variant.
    """
    return 3 if own_patches or students or newer_quantization or "cuda" in lowerings else 2 if batches else 1


MatrixKind = Literal["int4", "int8", "int8-wide", "int8-row", "int8-row-wide", "fp8", "kept"]


class BatchTiming(Part):
    """Times of a variant at one batch size, over those of the variant it was made from: below 1 it is faster.

    Attributes:
        batch: The batch size.
        step: Time of single steps.
        chunk: Time of passes over four tokens.
    """

    batch: int = Field(gt=0)
    step: float = Field(gt=0)
    chunk: float = Field(gt=0)


class Timing(Part):
    """How fast a variant was on one machine, against the variant it was made from: both took turns in one process.

    Attributes:
        processor: Name of the processor, with its family, model and vector extensions. Times on another one say nothing.
        batches: An entry for each batch size, the largest first; at the default shape.
    """

    processor: str
    batches: Annotated[tuple[BatchTiming, ...], Field(min_length=1, max_length=MOST_BATCH_SIZES)]


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
        timing: How fast it was where it was made; null if it was not timed.
    """

    source: str
    budget: float | None
    error: float | None
    plain_error: float | None
    images: int
    guidance: float
    matrices: dict[str, MatrixKind]
    caches: tuple[int, ...] = ()
    timing: Timing | None = None

    @property
    def needs_schema_3(self) -> bool:
        """Whether older schemas cannot say it: it is timed, or activations of some products are scaled by row."""
        return self.timing is not None or any(kind.startswith("int8-row") for kind in self.matrices.values())


class QuantizedStudent(Part):
    """A student with weights of 8 bits, which a variant runs in place of the one in float32.

    It was faster than that one where it was made, at this batch size.

    Attributes:
        block: Index of its flow block, which has a student in float32.
        network: Takes and makes what the student in float32 does.
        matrices: Type of each weight matrix that can be quantised; `kept` is float32.
        error: ||x - exact|| / ||exact|| of its tokens x, where the student in float32 makes `exact` of the same inputs.
        time: Time of a pass over that of the student in float32, on the processor that the variant was timed on.
    """

    block: int = Field(ge=0)
    network: NetworkSpec
    matrices: dict[str, MatrixKind]
    error: float = Field(ge=0)
    time: float = Field(gt=0)


class Variant(Part):
    """One set of step graphs: a lowering at a precision.

    Attributes:
        activation_peaks: Largest magnitudes seen at export, by transformer layer and projection; for fp16 variants, since
            float16 ends at 65504.
        quantization: For variants that `starflow calibrate --weights` made.
        students: Students that it runs in place of those of the same flow blocks, in order of their blocks.
    """

    name: str
    lowering: Lowering
    precision: Literal["fp32", "fp16", "bf16", "int8", "int4", "fp8"]
    weights: FileSpec
    activation_peaks: dict[str, float] | None
    quantization: Quantization | None = None
    graphs: tuple[GraphSpec, ...]
    students: tuple[QuantizedStudent, ...] = ()

    @property
    def takes_chunks(self) -> bool:
        """Whether a run may hold several tokens at any position; if not, at position 0 only, where the condition is."""
        return self.lowering != "cuda"


class ConditioningSpec(Part):
    """What the model is conditioned on.

    Attributes:
        kind: `class-token` is one one-hot token of width num_classes + 1, whose last index is the null class. `class-label` is
            an index, where num_classes is the null class. `features` are `tokens` vectors of `width` values from the caller.
    """

    kind: Literal["none", "class-token", "class-label", "features"]
    num_classes: int = Field(default=0, ge=0, le=MOST_CLASSES)
    class_names: tuple[str, ...] | None = None
    tokens: int = Field(default=0, ge=0)
    width: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ConditioningSpec":
        """The sizes are those of the kind."""
        classes, sizes = self.num_classes, (self.tokens, self.width)
        fits = {
            "none": classes == 0 and sizes == (0, 0),
            "class-token": classes > 0 and sizes == (1, classes + 1),
            "class-label": classes > 0 and sizes == (0, 0),
            "features": classes == 0 and min(sizes) > 0,
        }
        if not fits[self.kind]:
            raise ValueError(f"{self.tokens} tokens of width {self.width} do not fit {classes} classes ({self.kind})")
        if self.class_names is not None and len(self.class_names) != classes:
            raise ValueError(f"class_names: found {len(self.class_names)} names of {classes} classes")
        return self


class ImageSpec(Part):
    """From data to pixels: value / scale + shift, then [-1, 1] to 8 bits. Mode `latent` means that there are no pixels."""

    mode: Literal["L", "RGB", "latent"]
    scale: float = Field(gt=0)
    shift: float


class Provenance(Part):
    """The origin of a bundle."""

    checkpoint_sha256: str
    created: str
    tools: dict[str, str]


class FlowSummary(Part):
    """The model the bundle was made from. `data_shape` is [C, H, W], or [D] for points."""

    data_shape: tuple[Annotated[int, Field(gt=0)], ...]


class OtherBatch(Part):
    """The fields of a manifest that differ for batches of another size.

    Variants differ in their graphs only; autoencoder and denoisers are the same networks as graphs of this size.
    """

    batch: int = Field(gt=0)
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=MOST_VARIANTS)]
    autoencoder: AutoencoderSpec | None = None
    denoisers: tuple[DenoiserSpec, ...] = ()


class Place(NamedTuple):
    """One of the manifests that a manifest of several shapes and batch sizes holds."""

    shape: tuple[int, int] | None  # height and width of the data; None is the default shape
    batch: int | None  # None is the largest batch size


Changes = Mapping[Place, dict[str, Any]]  # by place, the fields that are replaced

CHANNELS = {"L": 1, "RGB": 3}
OutputKind = Literal["images", "latents", "points"]


class FlowManifest(Part):
    """The fields that both families share.

    Attributes:
        family_name: The family, as messages call it.
        batch: The largest batch size.
        batches: Smaller batch sizes, the largest of them first; `at_batch` returns the manifest for one of them.
    """

    family_name: ClassVar[str]

    schema_version: Literal[1, 2, 3]
    model: FlowSummary
    image: ImageSpec
    conditioning: ConditioningSpec
    batch: int = Field(gt=0)
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=MOST_VARIANTS)]
    provenance: Provenance
    text: TextSpec | None = None
    autoencoder: AutoencoderSpec | None = None
    denoisers: tuple[DenoiserSpec, ...] = ()
    plans: tuple[CalibratedPlan, ...] = ()
    batches: Annotated[tuple[OtherBatch, ...], Field(max_length=MOST_BATCH_SIZES - 1)] = ()

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Every batch size, the largest first."""
        return (self.batch, *(other.batch for other in self.batches))

    def at_batch(self, batch: int) -> Self:
        """The manifest for batches of one size only, at the default shape.

        Raises:
            UsageError: the bundle has no such batch size.
        """
        if batch == self.batch:
            return self.model_copy(update=self._of_one_batch())
        for other in self.batches:
            if other.batch == batch:
                return self._with_batch(other)
        known = ", ".join(map(str, reversed(self.batch_sizes)))
        raise UsageError(f"batch {batch}: this bundle has {known}; `starflow export --batch` adds others")

    def _with_batch(self, other: OtherBatch) -> Self:
        return type(self).model_validate(dict(self) | dict(other) | self._of_one_batch())

    def _of_one_batch(self) -> dict[str, Any]:
        """The fields that have to change in a manifest of one batch size, at the default shape."""
        return {"schema_version": self._oldest_schema(batches=False), "batches": ()}

    def _oldest_schema(self, *, batches: bool) -> int:
        return schema_version(
            batches,
            self._has_own_patches(),
            {variant.lowering for variant in self.variants},
            students=self._has_students(),
            newer_quantization=any(each.quantization and each.quantization.needs_schema_3 for each in self.variants),
        )

    def _has_own_patches(self) -> bool:
        """Whether a flow block has patches of its own."""
        return False

    def _has_students(self) -> bool:
        """Whether a flow block has a student."""
        return False

    def _check_batches(self) -> None:
        """See that every batch size makes a manifest of the same model."""
        if self.schema_version != self._oldest_schema(batches=bool(self.batches)):
            raise ValueError(
                f"schema_version {self.schema_version}: a bundle of one batch size has 1, one of several has 2,"
                " and one with a cuda variant, with times or products by row, with patches of a flow block's own, or with"
                " students has 3"
            )
        if any(smaller >= larger for larger, smaller in pairwise(self.batch_sizes)):
            found = ", ".join(map(str, self.batch_sizes))
            raise ValueError(f"batches: found sizes {found}; each must be smaller than the one before")
        own = self._of_all_batches()
        for other in self.batches:
            try:
                made = self._with_batch(other)
            except ValidationError as error:
                raise ValueError(f"batches, {other.batch}: {one_line(error)}") from None
            for name, value in made._of_all_batches().items():
                if value != own[name]:
                    raise ValueError(f"batches, {other.batch}: its {name} differ from those of batch {self.batch}")

    def _of_all_batches(self) -> dict[str, object]:
        """By field, what has to be the same for every batch size."""
        autoencoder = self.autoencoder
        return {
            "variants": [variant.model_copy(update={"graphs": (), "students": ()}) for variant in self.variants],
            "networks": [network.weights for network in self.networks()],
            "decoders": autoencoder and (autoencoder.pixel_shape, [each.noise_std for each in autoencoder.decoders]),
            "denoisers": [(denoiser.kind, denoiser.precision) for denoiser in self.denoisers],
        }

    @model_validator(mode="after")
    def _plans_fit(self) -> "FlowManifest":
        """Every plan belongs to a variant of the bundle."""
        named = {variant.name for variant in self.variants}
        for plan in self.plans:
            if plan.variant not in named:
                raise ValueError(f"plans: found variant {plan.variant}; there are {', '.join(sorted(named))}")
        return self

    @model_validator(mode="after")
    def _pixels_fit(self) -> "FlowManifest":
        """Data become pixels of the mode, by the decoder if there is one; decoders and denoisers take the data's shape."""
        data, channels = self.model.data_shape, CHANNELS.get(self.image.mode)
        if self.autoencoder:
            pixels = self.autoencoder.pixel_shape
            if channels not in (None, pixels[0]):
                raise ValueError(f"autoencoder: has {pixels[0]} channels, the image mode is {self.image.mode}")
            for network, roles in self.autoencoder.networks():
                shapes = {"latent": (self.batch, *data), "pixels": (self.batch, *pixels)}
                self._check_network(network, "autoencoder", *({role: shapes[role]} for role in roles))
        for denoiser in self.denoisers:
            made = {"score": "score", "learned": "prediction"}[denoiser.kind]
            state = (self.batch, *data)
            self._check_network(denoiser.network, "denoisers", {"x": state}, {made: state})
        if self.text:
            ids = (1, self.text.tokens)
            features = (1, self.conditioning.tokens, self.conditioning.width)
            self._check_network(self.text.encoder, "text", {"ids": ids, "mask": ids}, {"features": features})
        return self

    @staticmethod
    def _check_network(
        network: NetworkSpec, what: str, inputs: Mapping[str, tuple[int, ...]], outputs: Mapping[str, tuple[int, ...]]
    ) -> None:
        """See that a network takes and makes tensors of these shapes, by role."""
        for specs, shapes, verb in ((network.inputs, inputs, "take"), (network.outputs, outputs, "make")):
            found: dict[str, tuple[int | str, ...]] = {spec.role: spec.shape for spec in specs}
            for role, shape in shapes.items():
                if found.get(role) != shape:
                    raise ValueError(f"{what}: {network.file.path} must {verb} {role} {list(shape)}")

    @property
    def output(self) -> OutputKind:
        """What the bundle makes: images (by a decoder if the data are latents), latents without a decoder, or points."""
        data = self.model.data_shape
        channels = CHANNELS.get(self.image.mode)  # None for `latent`
        if channels and (self.autoencoder or (len(data) == 3 and data[0] == channels)):
            return "images"
        return "points" if len(data) == 1 else "latents"

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one output: of the pixels, [C, H, W], if there is an autoencoder, else of the data."""
        return self.autoencoder.pixel_shape if self.autoencoder else self.model.data_shape

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
            yield from (network for network, _ in self.autoencoder.networks())
        yield from (denoiser.network for denoiser in self.denoisers)

    def files(self, variants: Collection[str] | None = None) -> Iterator[FileSpec]:
        """Every file the manifest names, some of them several times; or those that variants of these names need."""
        for variant in self.variants:
            if variants is None or variant.name in variants:
                yield variant.weights
                yield from (graph.file for graph in variant.graphs)
                yield from (file for each in variant.students for file in (each.network.weights, each.network.file))
        for network in self.networks():
            yield from (network.weights, network.file)
        if self.text:
            yield self.text.tokenizer
        for batch in self.batch_sizes[1:]:
            yield from self.at_batch(batch).files(variants)

    def longest_run(self, block: int) -> int:
        """Largest number of tokens S in one run of a block's graph; 1 if its shapes do not depend on S."""
        return 1


def published_schema(model: Any, title: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of a file whose contract is published."""
    schema = TypeAdapter(model).json_schema()
    schema["title"] = title
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
