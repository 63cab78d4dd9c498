"""What a manifest says of the networks beside the flow: text encoder, autoencoder, denoisers. None has caches or chunks."""

from typing import Literal

from pydantic import Field, model_validator

from starflow.runtime.bundle.graph_spec import FileSpec, TensorSpec
from starflow.runtime.plain.validation import Part

DenoiserKind = Literal["score", "learned"]


class NetworkSpec(Part):
    """A graph of static shapes that runs once for a batch.

    `weights` is the file its tensors point into, which other graphs may share; `weight_bytes` is what one run reads of it.
    """

    file: FileSpec
    weights: FileSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weight_bytes: int = Field(ge=0)


class TextSpec(Part):
    """From a caption to condition tokens.

    Attributes:
        tokenizer: `tokenizer.json` as the tokenizers library reads it; it cuts and pads to T tokens.
        encoder: Takes `ids` and `mask` int64 [1, T]; makes `features` float32 [1, T, width] with padded rows zero.
        tokens: T.
        template: What the tokenizer gets for a caption, the empty one included; `{caption}` stands for it.
    """

    tokenizer: FileSpec
    encoder: NetworkSpec
    tokens: int = Field(gt=0)
    template: str = Field(pattern=r"\{caption\}")


class DecoderSpec(Part):
    """Latents to pixels: takes `latent` float32 [B, C, h, w], makes `pixels` float32 [B, 3 or 1, H, W] in [-1, 1].

    `noise_std` is that of the noise in the latents it was trained to take away; 0 for a plain autoencoder's.
    """

    network: NetworkSpec
    noise_std: float = Field(ge=0)


class AutoencoderSpec(Part):
    """The autoencoder of a latent model. Latents here are the autoencoder's own: data / scale + shift.

    Attributes:
        encoder: Takes `pixels`, makes `latent` (the mean, where the autoencoder has a distribution); null if left out.
        decoders: The plain one, and where there is one, that trained on noisy latents.
        pixel_shape: [C, H, W].
    """

    encoder: NetworkSpec | None
    decoders: tuple[DecoderSpec, ...] = Field(min_length=1, max_length=2)
    pixel_shape: tuple[int, int, int]

    @model_validator(mode="after")
    def _plain_first(self) -> "AutoencoderSpec":
        if [decoder.noise_std > 0 for decoder in self.decoders] != [False, True][: len(self.decoders)]:
            raise ValueError("decoders: must be the plain one (noise_std 0), then one for noisy latents, if any")
        return self


class DenoiserSpec(Part):
    """A graph that says how to take the training noise out of samples; what is done with it, docs/bundle.md tells.

    Attributes:
        kind: `score`: makes grad log p(x | condition). `learned`: makes the prediction of the denoiser trained beside the flow.
        precision: Of the weights it shares with the step graphs.
        network: Takes `x` float32 [B, C, H, W] and the condition, where the model has one.
    """

    kind: DenoiserKind
    precision: Literal["fp32", "fp16", "bf16"]
    network: NetworkSpec
