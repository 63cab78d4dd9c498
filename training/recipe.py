"""The recipe: everything that decides a training run, as one typed document read from YAML."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from starflow.runtime.errors import RecipeError
from starflow.runtime.validation import one_line
from starflow.training.config import ModelConfig, StarflowConfig, TarflowConfig
from starflow.training.continuous.config import VelocityMlpConfig, VelocityTransformerConfig
from starflow.training.continuous.objective_config import CfmConfig, ObjectiveConfig, OtCfmConfig, WeightedCfmConfig
from starflow.training.frozen import Frozen


class FolderSource(Frozen):
    """Image files of one size under a folder; the class is the first sub-folder, or the text a caption."""

    kind: Literal["folder"]
    path: Path
    mode: Literal["L", "RGB"] = "RGB"
    size: int | None = Field(None, gt=0)  # scale the short side to this and crop the centre; None: sizes must agree
    captions: Path | None = None  # .jsonl ({"file", "caption"} a line) or .csv (columns file, caption)
    encoder: Path | None = None  # a local Hugging Face text encoder; captions need one
    tokens: int = Field(32, gt=0)  # text tokens a caption is cut or padded to
    holdout: float = Field(0.05, gt=0, lt=1)  # part kept away from training, for evaluation

    @model_validator(mode="after")
    def _captions_need_an_encoder(self) -> Self:
        if (self.captions is None) != (self.encoder is None):
            raise ValueError("captions and encoder belong together; name both or neither")
        return self


class NpzSource(Frozen):
    """Arrays: `images` uint8 [N, H, W(, C)], `labels` int [N] or `features` float32 [N, T, W], and `test_*` of each."""

    kind: Literal["npz"]
    path: Path
    holdout: float = Field(0.05, gt=0, lt=1)  # used when the file holds no test_images


class Digits8Source(Frozen):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, ten classes."""

    kind: Literal["digits8"]
    holdout: float = Field(0.1, gt=0, lt=1)


class PointsSource(Frozen):
    """Points in the plane, drawn anew from a distribution that is known in closed form; for continuous flows."""

    kind: Literal["points"]
    shape: Literal["normal", "eight_gaussians", "moons", "checkerboard"]
    count: int = Field(20_000, gt=1)
    holdout: float = Field(0.1, gt=0, lt=1)


DataSource = Annotated[FolderSource | NpzSource | Digits8Source | PointsSource, Field(discriminator="kind")]


class Training(Frozen):
    """How to train. A step is one update of the weights."""

    steps: int | None = Field(None, gt=0)  # say steps or epochs
    epochs: float | None = Field(None, gt=0)
    batch_size: int = Field(128, gt=0)  # images in one step
    accumulate: int = Field(1, gt=0)  # passes a batch is split into, to fit memory; the result is the same
    learning_rate: float = Field(1e-3, gt=0)  # after the warm-up
    warmup_steps: int = Field(200, ge=0)  # linear from 0
    final_learning_rate: float = Field(1e-6, ge=0)  # where the cosine ends
    betas: tuple[float, float] = (0.9, 0.95)  # a short memory of the variance: flows have sudden gradients
    weight_decay: float = Field(1e-4, ge=0)  # matrices only, not norms, biases or embeddings
    gradient_clip: float = Field(1.0, ge=0)  # norm over all parameters; 0 disables
    ema_decay: float = Field(0.999, ge=0, lt=1)  # the checkpoint holds the moving average; 0 disables
    noise_std: float = Field(0.1, ge=0)  # Gaussian noise on x in [-1, 1]; 0: uniform noise of one grey level
    label_drop: float = Field(0.1, ge=0, le=1)  # part of the conditions replaced by the null one, for guidance
    shift: int = Field(0, ge=0)  # augmentation: move by up to this many pixels, repeating the border
    flip: bool = False  # augmentation: mirror left-right
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # autocast; weights and averages stay fp32. fp16: CUDA only
    compile: bool = False  # torch.compile: pays off on a GPU
    seed: int = Field(0, ge=0)  # weights, batches, noise: the run is a function of it
    device: str = "auto"  # auto: cuda if there is one, else cpu
    threads: int | None = Field(None, gt=0)  # CPU threads; None: torch's choice
    log_every: int = Field(20, gt=0)
    evaluate_every: int = Field(1000, gt=0)  # held-out bits/dim
    sample_every: int = Field(1000, gt=0)  # a grid of samples
    checkpoint_every: int = Field(1000, gt=0)  # state to resume from, and checkpoint
    sample_guidance: float = Field(0.0, ge=0)  # guidance weight of the sample grid
    half_checkpoint: bool = False  # store the checkpoint's weights in fp16

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("name either steps or epochs")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        return self


# What a resumed run may change: reports, the machine, and how long to go on.
CHANGEABLE = {
    *(f"training.{field}" for field in ("steps", "epochs", "device", "threads", "compile", "half_checkpoint")),
    *(f"training.{field}" for field in ("log_every", "evaluate_every", "sample_every", "checkpoint_every")),
    *("training.sample_guidance", "objective.likelihood_steps", "objective.likelihood_samples"),
}


class Recipe(Frozen):
    """One training run. Paths are relative to the working directory. An unconditional model ignores labels."""

    model: ModelConfig
    data: DataSource
    objective: ObjectiveConfig | None = None  # of a continuous flow; the others maximise likelihood
    training: Training

    @model_validator(mode="after")
    def _no_denoiser(self) -> Self:
        if getattr(self.model, "learnable_self_denoiser", False):
            raise ValueError(
                "model.learnable_self_denoiser is trained beside the flow, which is not supported; import one"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits_the_family(self) -> Self:
        continuous = self.model.family == "continuous-flow"
        if continuous and self.objective is None:
            raise ValueError("objective is missing: a continuous flow needs one, of kind cfm, ot-cfm or w-cfm")
        if not continuous and self.objective is not None:
            raise ValueError(f"objective is for continuous flows; a {self.model.family} maximises likelihood")
        return self


def _fields(*models: type[Frozen]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(field for model in models for field in model.model_fields))


# For the nearest name of a misspelt field.
KNOWN_FIELDS = {
    "model": _fields(StarflowConfig, TarflowConfig, VelocityTransformerConfig, VelocityMlpConfig),
    "data": _fields(FolderSource, NpzSource, Digits8Source, PointsSource),
    "objective": _fields(CfmConfig, OtCfmConfig, WeightedCfmConfig),
    "training": tuple(Training.model_fields),
}


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file.
        overrides: `section.field=value` each, replacing what the file says; the value is YAML.

    Raises:
        RecipeError: One line that names the file, the field, what was found and what was expected.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: found {type(content).__name__}, expected the sections model, data and training")
    for override in overrides:
        _override(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        known = KNOWN_FIELDS.get(str(place[0]) if len(place) > 1 else "", tuple(Recipe.model_fields))
        raise RecipeError(f"{path}: {one_line(error, known)}") from None


def changed_field(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Name the first field that differs between two dumped recipes and that a resumed run may not change."""
    for section in Recipe.model_fields:
        was, now = old.get(section) or {}, new.get(section) or {}
        for field in sorted(was.keys() | now.keys()):
            may_change = f"{section}.{field}" in CHANGEABLE
            if not may_change and was.get(field) != now.get(field):
                return f"{section}.{field} (was {was.get(field)!r}, is {now.get(field)!r})"
    return None


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    section, dot, field = key.strip().partition(".")
    if not equals or not dot or not isinstance(content.setdefault(section, {}), dict):
        raise RecipeError(f"--set {override}: expected section.field=value, such as training.steps=1000")
    try:
        content[section][field] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set {override}: {value!r} is not a YAML value") from None
