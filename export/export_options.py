"""What a user asks an export for."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from starflow.export.activations import ActivationData
from starflow.export.precision import Precision, TextPrecision
from starflow.runtime.bundle.manifest import MOST_BATCH_SIZES, Lowering
from starflow.runtime.bundle.network_spec import DenoiserKind
from starflow.runtime.plain.errors import UsageError
from starflow.training.layers.tokens import Patch, least_sides

# The largest sizes a bundle may have: graphs hold tables of their positions, and a runtime allocates caches for all of them.
MOST_BATCH = 1 << 16
MOST_TOKENS = 1 << 18  # of an image or a condition; published models have up to 1,024 and 128


@dataclass(frozen=True)
class ExportOptions:
    """What to write."""

    precisions: Sequence[Precision] = ("fp32",)  # types of weights, activations and caches
    # How graphs are written: for the CPU, for ONNX Runtime on CUDA (autoregressive flows), for everything else.
    lowerings: Collection[Lowering] = ("portable", "cpu")
    # Numbers of images sampled together, in any order; the runtime splits and pads any number of images.
    batch: int | Sequence[int] = 1
    # Height and width of the data in (latent) pixels; None takes the training size.
    shape: tuple[int, int] | None = None
    other_shapes: Sequence[tuple[int, int]] = ()  # further shapes that the bundle holds as well
    max_chunk: int | None = None  # most tokens of one run; None allows any number up to the capacity
    guidance: bool = True  # whether conditioned networks run [conditional, null] rows
    attention_temperature: bool = False  # whether graphs take the attention temperature as an input
    condition_tokens: int | None = None  # tokens of a feature condition; None takes the trained number
    # Denoisers to write; None takes the learned one where the model has it.
    denoisers: Sequence[DenoiserKind] | None = None
    # Folder of a text encoder, or `none`; None takes the one the checkpoint has or names.
    text_encoder: str | None = None
    # Type the text encoder's weights are stored in; None takes that of the folder.
    text_precision: TextPrecision | None = None
    # Folder of an autoencoder, or `none`; None takes the one in the checkpoint, if its data are latents.
    autoencoder: str | None = None
    # Folders of students, each for a flow block, distilled from the same checkpoint.
    students: Sequence[str] = ()
    # Data whose activations must fit into fp16; None draws samples from the model.
    activations: ActivationData | None = None

    @property
    def batches(self) -> tuple[int, ...]:
        """Every batch size once, the largest first.

        Raises:
            UsageError: one is out of range, or there are too many.
        """
        sizes = sorted({self.batch} if isinstance(self.batch, int) else set(self.batch), reverse=True)
        named = f"--batch {','.join(map(str, reversed(sizes)))}"
        if not sizes or sizes[-1] < 1 or sizes[0] > MOST_BATCH:
            raise UsageError(f"{named}: give a number of images of at least 1 and at most {MOST_BATCH:,}")
        if len(sizes) > MOST_BATCH_SIZES:
            raise UsageError(f"{named}: found {len(sizes)} batch sizes, expected at most {MOST_BATCH_SIZES}")
        return tuple(sizes)

    def sizes(self, trained: int, patches: Collection[Patch]) -> tuple[tuple[int, int], ...]:
        """Height and width of every shape of the bundle, the default one first.

        Args:
            trained: Side of the images the model was trained on.
            patches: Height and width of every patch that a shape consists of.

        Raises:
            UsageError: a shape is named twice or does not consist of whole patches.
        """
        sizes = (self.shape or (trained, trained), *self.other_shapes)
        if len(set(sizes)) < len(sizes):
            raise UsageError(
                f"--shape {' '.join(f'{height}x{width}' for height, width in sizes)}: name every shape once"
            )
        p, q = least_sides(patches)
        for height, width in sizes:
            if height < 1 or width < 1 or height % p or width % q:
                patch = str(p) if p == q else f"{p}x{q}"
                raise UsageError(f"--shape {height}x{width}: give sides that are multiples of the patch size {patch}")
            if height * width // min(map(math.prod, patches)) > MOST_TOKENS:
                raise UsageError(
                    f"--shape {height}x{width}: found more than {MOST_TOKENS:,} tokens; give smaller sides"
                )
        return sizes

    def tokens(self, trained: int, *, features: bool) -> int:
        """Condition tokens of the bundle.

        Args:
            trained: The number the model was trained on.
            features: Whether its condition is features, which may have another number of tokens.

        Raises:
            UsageError: the model cannot take the number that was asked for.
        """
        if self.condition_tokens is None:
            return trained
        if not features:
            raise UsageError("--condition-tokens: only models conditioned on features take another number of tokens")
        if not 1 <= self.condition_tokens <= MOST_TOKENS:
            raise UsageError(
                f"--condition-tokens {self.condition_tokens}: give a number of at least 1 and at most {MOST_TOKENS:,}"
            )
        return self.condition_tokens


DEFAULTS = ExportOptions()
