"""The recipe: everything that a training run depends on, as one typed document read from YAML."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from starflow.runtime.plain.errors import RecipeError
from starflow.runtime.plain.limits import MOST_THREADS
from starflow.runtime.plain.validation import one_line
from starflow.training.autoencoder.config import (
    AutoencoderConfig,
    AutoencoderObjective,
    NoisyDecoderConfig,
    ReconstructionConfig,
)
from starflow.training.config import ModelConfig
from starflow.training.continuous.objective_config import ObjectiveConfig
from starflow.training.data.augmentation import Augmentation
from starflow.training.data.shape import shape_fault
from starflow.training.data.source import DataSource, FolderSource, ImageSource, StreamedSource
from starflow.training.frozen import Frozen
from starflow.training.start import Start, begin_with_checkpoint
from starflow.training.students.config import StudentObjective, StudentOptions
from starflow.training.yaml_text import read_override, read_yaml

Decay = Annotated[float, Field(ge=0, lt=1)]
MOST_STEPS = 1_000_000_000  # years, on any machine; what counts steps may have 32 bits


class RunSettings(Frozen):
    """How to run a training. A step is one update of the weights."""

    steps: int | None = Field(None, gt=0, le=MOST_STEPS)  # give either steps or epochs
    epochs: float | None = Field(None, gt=0, le=MOST_STEPS)
    batch_size: int = Field(128, gt=0, le=MOST_STEPS)  # images in one step
    accumulate: int = Field(1, gt=0)  # passes a batch is split into, to fit memory; the result is the same
    learning_rate: float = Field(1e-3, gt=0)  # after the warm-up
    warmup_steps: int = Field(200, ge=0, le=MOST_STEPS)  # linear from 0
    final_learning_rate: float = Field(1e-6, ge=0)  # where the cosine ends
    betas: tuple[float, float] = (0.9, 0.95)  # a short memory of the variance: flows have sudden gradients
    weight_decay: float = Field(1e-4, ge=0)  # of matrices; norms and biases never decay
    embedding_weight_decay: float = Field(0.0, ge=0)  # of learned tables: positions, classes, start tokens
    gradient_clip: float = Field(1.0, ge=0)  # norm over all parameters; 0 disables
    # The checkpoint holds a moving average; 0: the weights themselves. Of several, the best on the validation part.
    ema_decay: Decay | Annotated[tuple[Decay, ...], Field(min_length=1, max_length=8)] = 0.999
    patience: int | None = Field(None, gt=0)  # end after so many evaluations without a new best; None: never
    crop: float = Field(1.0, gt=0, le=1)  # augmentation: cut out at least this share of the area, and scale it back
    shift: int = Field(0, ge=0, le=256)  # augmentation: move by up to this many pixels, repeating the border
    flip: bool = False  # augmentation: mirror left-right
    colour: float = Field(0.0, ge=0, le=1)  # augmentation: change brightness, contrast, saturation by up to this share
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # autocast; weights and averages stay fp32. fp16: CUDA only
    recompute: bool = False  # keep only the input of each layer, and compute the rest again for its gradient
    compile: bool = False  # torch.compile: for long runs on a GPU; an H100 spent more than a minute on compiling
    seed: int = Field(0, ge=0, lt=1 << 63)  # weights, batches, noise: the run is a function of it
    device: str = "auto"  # auto: cuda if there is one, else cpu
    threads: int | None = Field(None, gt=0, le=MOST_THREADS)  # CPU threads; None: torch's choice
    log_every: int = Field(20, gt=0)
    evaluate_every: int = Field(1000, gt=0)  # figures on held-out images
    sample_every: int = Field(1000, gt=0)  # a grid of samples, or of reconstructions
    checkpoint_every: int = Field(1000, gt=0)  # state to resume from, and checkpoint
    half_checkpoint: bool = False  # store the checkpoint's weights in fp16

    @property
    def ema_decays(self) -> tuple[float, ...]:
        """The decays of the moving averages that are kept."""
        return self.ema_decay if isinstance(self.ema_decay, tuple) else (self.ema_decay,)

    @property
    def augmentation(self) -> Augmentation:
        """What happens to the images of a batch."""
        return Augmentation(crop=self.crop, shift=self.shift, flip=self.flip, colour=self.colour)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        if len(set(self.ema_decays)) < len(self.ema_decays):
            raise ValueError(f"ema_decay: found one decay twice in {list(self.ema_decays)}; name each once")
        return self


class Training(RunSettings):
    """How to train a flow."""

    noise_std: float = Field(0.1, ge=0)  # Gaussian noise on x in [-1, 1], or on latents; 0: uniform noise of a level
    attention_dropout: float = Field(0.0, ge=0, lt=1)  # share of attention's weights that a step leaves out
    feed_forward_dropout: float = Field(0.0, ge=0, lt=1)  # share of the hidden values of the MLPs
    embedding_dropout: float = Field(0.0, ge=0, lt=1)  # share of the values of embedded tokens and conditions
    views: int = Field(4, gt=0, le=64)  # latents: augmented copies of every image that are encoded beside it
    condition_noise: float = Field(
        0.0, ge=0
    )  # Gaussian noise on text features, in units of each token's root mean square
    label_drop: float = Field(0.1, ge=0, le=1)  # part of the conditions replaced by the null one, for guidance
    sample_guidance: float = Field(0.0, ge=0)  # guidance weight of the sample grid
    # Record a step's pass and gradient on the GPU once and replay them: for small models, which wait for launches.
    cuda_graph: bool = False

    @model_validator(mode="after")
    def _can_be_recorded(self) -> Self:
        if self.cuda_graph and (self.accumulate > 1 or self.recompute):
            raise ValueError("cuda_graph records one pass over a whole batch; leave out accumulate and recompute")
        return self


# What a resumed run may change: reports, the machine, and how long to go on.
CHANGEABLE = {
    *(
        f"training.{field}"
        for field in ("steps", "epochs", "device", "threads", "compile", "recompute", "cuda_graph", "half_checkpoint")
    ),
    *(f"training.{field}" for field in ("log_every", "evaluate_every", "sample_every", "checkpoint_every")),
    *("training.patience", "training.sample_guidance", "objective.likelihood_steps", "objective.likelihood_samples"),
}


class Recipe(Frozen):
    """One training run. Paths are relative to the working directory. An unconditional model ignores labels."""

    start: Start | None = None  # None: with random weights
    model: ModelConfig  # with a start, it may be left out
    data: DataSource
    objective: ObjectiveConfig | None = None  # of a continuous flow; the others maximise likelihood
    training: Training

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        if getattr(self.model, "learnable_self_denoiser", False):
            raise ValueError(
                "model.learnable_self_denoiser: found true; a learned denoiser can be imported, not trained"
            )
        continuous = self.model.family == "continuous-flow"
        if continuous and self.objective is None:
            raise ValueError("objective is missing: a continuous flow needs one, of kind cfm, ot-cfm or w-cfm")
        if not continuous and self.objective is not None:
            raise ValueError(f"objective is for continuous flows; a {self.model.family} maximises likelihood")
        # Reading the images comes next, and may take long.
        if isinstance(self.data, FolderSource | StreamedSource) and self.data.autoencoder is None:
            shape = self.data.image_shape
            if shape is not None and (fault := shape_fault(shape, self.model)):
                raise ValueError(fault)
        return self


class AutoencoderRecipe(Frozen):
    """Training an autoencoder. Conditions of the data are ignored."""

    autoencoder: AutoencoderConfig
    data: ImageSource
    objective: AutoencoderObjective = AutoencoderObjective()
    training: RunSettings


class DecoderRecipe(Frozen):
    """Fine-tuning an autoencoder's decoder on noisy latents."""

    decoder: NoisyDecoderConfig
    data: ImageSource
    objective: ReconstructionConfig = ReconstructionConfig()
    training: RunSettings


class StudentRecipe(Frozen):
    """Distilling a flow block, as `starflow distill` does it."""

    student: StudentOptions = StudentOptions()
    objective: StudentObjective = StudentObjective()
    training: RunSettings


AnyRecipe = Recipe | AutoencoderRecipe | DecoderRecipe  # what a file may hold
KINDS: dict[str, type[AnyRecipe]] = {"autoencoder": AutoencoderRecipe, "decoder": DecoderRecipe}  # by their section


def _fields(section: Any) -> tuple[str, ...]:
    """Every field of a section that may be one of several kinds."""
    if isinstance(section, type) and issubclass(section, Frozen):
        return tuple(section.model_fields)
    return tuple(field for kind in get_args(section) for field in _fields(kind))


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a YAML recipe; its sections tell whether it trains a flow, an autoencoder or a decoder.

    Each of the `overrides` is `section.field=value` and replaces a field of the file; the value is YAML.

    Raises:
        RecipeError: one line that names the file, the field, what was found and what was expected.
    """
    content = read_yaml(path, "recipe", RecipeError)
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: found {type(content).__name__}, expected the sections model, data and training")
    content = overridden(content, overrides)
    kind = next((kind for section, kind in KINDS.items() if section in content), Recipe)
    start = begin_with_checkpoint(content) if kind is Recipe else None
    try:
        recipe = kind.model_validate(content)
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        inside = len(place) > 1
        known = _fields(kind.model_fields[str(place[0])].annotation) if inside else (*kind.model_fields, *KINDS)
        raise RecipeError(f"{path}: {one_line(error, known)}") from None
    if start is not None and isinstance(recipe, Recipe) and recipe.model != start.model:
        raise RecipeError(f"{path}: model: found another model than that of start.checkpoint; leave the section out")
    return recipe


def changed_field(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Name the first field that differs between two dumped recipes and that a resumed run may not change."""
    for section in sorted(old.keys() | new.keys()):
        was, now = old.get(section) or {}, new.get(section) or {}
        for field in sorted(was.keys() | now.keys()):
            may_change = f"{section}.{field}" in CHANGEABLE
            if not may_change and was.get(field) != now.get(field):
                return f"{section}.{field} (was {was.get(field)!r}, is {now.get(field)!r})"
    return None


def overridden(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The sections of a recipe, with fields replaced by `section.field=value`, whose value is YAML.

    Raises:
        RecipeError: an override is none.
    """
    expected = "section.field=value, such as training.steps=1000"
    changed = dict(content)
    for override in overrides:
        key, value = read_override(override, expected, RecipeError)
        section, dot, field = key.partition(".")
        fields = changed.get(section, {})
        if not dot or not isinstance(fields, dict):
            raise RecipeError(f"--set {override}: expected {expected}")
        changed[section] = {**fields, field: value}
    return changed
