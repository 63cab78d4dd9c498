"""What a user asks an export for."""

from collections.abc import Sequence
from dataclasses import dataclass

from starflow.export.autoregressive.activation_check import ActivationData
from starflow.export.bundle_writer import Precision
from starflow.export.networks.text_encoder import TextPrecision
from starflow.runtime.bundle.network_spec import DenoiserKind


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        precisions: Types of weights, activations and caches.
        batch: Images decoded together; the runtime splits and pads any number of images.
        shape: Height and width of the data in (latent) pixels; None takes the training size.
        other_shapes: Further ones that the bundle holds as well.
        max_chunk: Most tokens of one run; None allows any number up to the capacity.
        guidance: Whether the conditioned blocks run [conditional, null] rows.
        attention_temperature: Whether graphs take the attention temperature as an input.
        condition_tokens: Tokens of a feature condition; None takes the configured number.
        denoisers: Which ones to write; None takes the learned one where the model has it.
        text_encoder: Folder of a text encoder, or `none`; None takes the one the checkpoint has or names.
        text_precision: Type its weights are stored in; None takes that of the folder.
        autoencoder: Folder of an autoencoder, or `none`; None takes the one in the checkpoint, if its data are latents.
        activations: Data whose activations must fit into fp16; None draws samples from the model.
    """

    precisions: Sequence[Precision] = ("fp32",)
    batch: int = 1
    shape: tuple[int, int] | None = None
    other_shapes: Sequence[tuple[int, int]] = ()
    max_chunk: int | None = None
    guidance: bool = True
    attention_temperature: bool = False
    condition_tokens: int | None = None
    denoisers: Sequence[DenoiserKind] | None = None
    text_encoder: str | None = None
    text_precision: TextPrecision | None = None
    autoencoder: str | None = None
    activations: ActivationData | None = None


DEFAULTS = ExportOptions()
