"""The networks beside the flow, as a manifest describes them: text encoder, autoencoder, denoisers, students.

None has caches or chunks.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from starflow.runtime.bundle.graph_spec import FileSpec, TensorSpec
from starflow.runtime.plain.validation import Part

DenoiserKind = Literal["score", "learned"]
Weight = Annotated[float, Field(ge=0)]


class NetworkSpec(Part):
    """A graph of static shapes that runs once for a batch.

    Attributes:
        weights: File of its weights, which other graphs may share.
        weight_bytes: Number of bytes of that file that one run reads.
    """

    file: FileSpec
    weights: FileSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weight_bytes: int = Field(ge=0)


class TextSpec(Part):
    """From a caption to condition tokens.

    Attributes:
        tokenizer: `tokenizer.json` as the tokenizers library reads it; it truncates and pads to T tokens.
        encoder: Turns `ids` and `mask` int64 [1, T] into `features` float32 [1, T, width], whose padded rows are zero.
        tokens: T.
        template: Text for the tokenizer, in which `{caption}` stands for the caption; it applies to the empty caption, too.
    """

    tokenizer: FileSpec
    encoder: NetworkSpec
    tokens: int = Field(gt=0)
    template: str = Field(pattern=r"\{caption\}")


class DecoderSpec(Part):
    """A decoder: turns `latent` float32 [B, C, h, w] into `pixels` float32 [B, 3 or 1, H, W] in [-1, 1].

    `noise_std` is the standard deviation of the noise in the latents it was trained on; 0 for the plain decoder.
    """

    network: NetworkSpec
    noise_std: float = Field(ge=0)


class AutoencoderSpec(Part):
    """The autoencoder of a latent model. Its latents are data / scale + shift.

    Attributes:
        encoder: Turns `pixels` into `latent`, the mean if the autoencoder has a distribution; null if it was left out.
        decoders: The plain decoder, and the one trained on noisy latents if there is one.
        pixel_shape: [C, H, W].
    """

    encoder: NetworkSpec | None
    decoders: tuple[DecoderSpec, ...] = Field(min_length=1, max_length=2)
    pixel_shape: tuple[int, int, int]

    def networks(self) -> Iterator[tuple[NetworkSpec, tuple[str, str]]]:
        """Every network, with the roles of what it takes and what it makes."""
        if self.encoder:
            yield self.encoder, ("pixels", "latent")
        for decoder in self.decoders:
            yield decoder.network, ("latent", "pixels")

    @model_validator(mode="after")
    def _plain_first(self) -> "AutoencoderSpec":
        if [decoder.noise_std > 0 for decoder in self.decoders] != [False, True][: len(self.decoders)]:
            raise ValueError(
                "decoders: must be the plain one (noise_std 0), then the one for noisy latents if there is one"
            )
        return self


class DenoiserSpec(Part):
    """A graph for removing the noise of training from samples; docs/bundle.md explains how its output is applied.

    Attributes:
        kind: `score` computes grad log p(x | condition), `learned` the prediction of a denoiser trained beside the flow.
        precision: Precision of the weights it shares with the step graphs.
        network: Takes `x` float32 [B, C, H, W], and the condition if the model has one.
    """

    kind: DenoiserKind
    precision: Literal["fp32", "fp16", "bf16"]
    network: NetworkSpec


class StudentFigures(Part):
    """How near a student's samples are to those of its teacher, the exact sampler, measured where it was trained.

    Attributes:
        beside: Other flow blocks whose tokens their students made as well.
        images: Number of images that were measured.
        guidance: Guidance weight they were made with.
        divergence: KL(student || teacher) of the flow block's tokens, in nats per value.
        pair_error: ||student - teacher|| / ||teacher|| of tokens from the same noise.
        frechet: Frechet distance between finished data of the student and of the teacher.
        frechet_floor: The same between two sets of the teacher's.
        diversity: Standard deviation within a condition, over that of the teacher.
    """

    beside: tuple[int, ...] = ()
    images: int = Field(gt=0)
    guidance: float = Field(ge=0)
    divergence: float
    pair_error: float = Field(ge=0)
    frechet: float = Field(ge=0)
    frechet_floor: float = Field(ge=0)
    diversity: float = Field(gt=0)

    def __str__(self) -> str:
        plural = "s" if len(self.beside) > 1 else ""
        blocks = ", ".join(map(str, self.beside))
        others = f", beside the student{plural} of flow block{plural} {blocks}" if self.beside else ""
        return (
            f"pair error {self.pair_error:.3g}, Frechet distance {self.frechet:.4g} (two sets of the teacher's: "
            f"{self.frechet_floor:.4g}), diversity {self.diversity:.3g}, divergence {self.divergence:.3g} nats per value; "
            f"{self.images} images, guidance {self.guidance:g}{others}"
        )


class StudentSpec(Part):
    """A network that does one flow block in one pass. It was distilled from the exact sampler of the same model.

    Attributes:
        block: Index of the flow block.
        teacher: SHA-256 of the weights file of the checkpoint whose sampler it was distilled from.
        guidance: Lowest and highest guidance weight it was trained for.
        figures: How near its samples are to its teacher's; null if this was not measured.
        network: Turns `noise` float32 [B, T, D], the block's input in block order, into `tokens` of the same shape. It also takes
            `guidance` float32 [B], and the condition if it depends on one: `label` int64 [B] or `condition` float32 [B, m, width].
    """

    block: int = Field(ge=0)
    teacher: str = Field(pattern=r"^[0-9a-f]{64}$")
    guidance: tuple[Weight, Weight]
    figures: StudentFigures | None
    network: NetworkSpec

    @model_validator(mode="after")
    def _range(self) -> "StudentSpec":
        low, high = self.guidance
        if low > high:
            raise ValueError(f"guidance: found {low:g} to {high:g}, expected the lower weight first")
        return self
