"""What a manifest says of the networks beside the flow: text encoder, autoencoder, denoisers. None has caches or chunks."""

from typing import Literal

from pydantic import Field

from starflow.runtime.graph_spec import FileSpec, TensorSpec
from starflow.runtime.validation import Part


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
        tokenizer: `tokenizer.json` as the tokenizers library reads it.
        encoder: Takes `ids` and `mask` int64 [1, T]; makes `features` float32 [1, T, width] with padded rows zero.
        tokens: T: captions are cut and padded to it.
        padding: Id of the padding token.
        suffix: Added to every caption that is not empty.
    """

    tokenizer: FileSpec
    encoder: NetworkSpec
    tokens: int = Field(gt=0)
    padding: int = Field(ge=0)
    suffix: str = ""


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
        decoders: One or two: the plain one, and one trained on noisy latents.
        pixel_shape: [C, H, W].
    """

    encoder: NetworkSpec | None
    decoders: tuple[DecoderSpec, ...] = Field(min_length=1, max_length=2)
    pixel_shape: tuple[int, int, int]


class DenoiserSpec(Part):
    """A graph that says how to take the training noise out of samples; what is done with it, docs/bundle.md tells.

    Attributes:
        kind: `score`: makes grad log p(x | condition). `learned`: makes the prediction of the denoiser trained beside the flow.
        precision: Of the weights it shares with the step graphs.
        network: Takes `x` float32 [B, C, H, W] and the condition, where the model has one.
    """

    kind: Literal["score", "learned"]
    precision: Literal["fp32", "fp16", "bf16"]
    network: NetworkSpec
