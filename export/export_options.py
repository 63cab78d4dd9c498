"""What a user asks an export for."""

from collections.abc import Sequence
from dataclasses import dataclass

from starflow.export.activation_check import ActivationData
from starflow.export.bundle_writer import Precision


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        precisions: Types of weights, activations and caches.
        batch: Images decoded together; the runtime splits and pads any number of images.
        shape: Height and width of the data in (latent) pixels; None takes the training size.
        max_chunk: Most tokens of one run; None allows any number up to the capacity.
        guidance: Whether the conditioned blocks run [conditional, null] rows.
        attention_temperature: Whether graphs take the attention temperature as an input.
        condition_tokens: Tokens of a feature condition; None takes the configured number.
        activations: Data whose activations must fit into fp16; None draws samples from the model.
    """

    precisions: Sequence[Precision] = ("fp32",)
    batch: int = 1
    shape: tuple[int, int] | None = None
    max_chunk: int | None = None
    guidance: bool = True
    attention_temperature: bool = False
    condition_tokens: int | None = None
    activations: ActivationData | None = None


DEFAULTS = ExportOptions()
