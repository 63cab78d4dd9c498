"""The recipe: everything that decides a training run, as one typed document read from YAML."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from starflow.runtime.plain.errors import RecipeError
from starflow.runtime.plain.validation import one_line
from starflow.training.autoencoder.config import (
    AutoencoderConfig,
    AutoencoderObjective,
    KlConfig,
    NoisyDecoderConfig,
    ReconstructionConfig,
    TinyConfig,
)
from starflow.training.autoregressive.config import StarflowConfig, TarflowConfig
from starflow.training.config import LatentScaling, ModelConfig, TextEncoding
from starflow.training.continuous.config import ContinuousMlpConfig, ContinuousTransformerConfig
from starflow.training.continuous.objective_config import CfmConfig, ObjectiveConfig, OtCfmConfig, WeightedCfmConfig
from starflow.training.frozen import Frozen
from starflow.training.text.captions import caption_template


class Latents(Frozen):
    """What turns the images of a source into latents, for a flow; training an autoencoder takes the images."""

    autoencoder: Path | None = None  # a checkpoint of an autoencoder, or any diffusers folder; None: pixels
    latent_scale: float | None = Field(None, gt=0)  # the flow sees (latent - shift) * scale
    latent_shift: float | None = None  # None, both: as the autoencoder's checkpoint says, or else measured

    @model_validator(mode="after")
    def _scaling_is_whole(self) -> Self:
        if (self.latent_scale is None) != (self.latent_shift is None):
            raise ValueError("latent_scale and latent_shift belong together; name both or neither")
        if self.latent_scale is not None and self.autoencoder is None:
            raise ValueError("latent_scale is for latents; name the autoencoder")
        return self

    @property
    def latent(self) -> LatentScaling | None:
        """The scaling that was named."""
        if self.latent_scale is None or self.latent_shift is None:
            return None
        return LatentScaling(scale=self.latent_scale, shift=self.latent_shift)


class Captioned(Frozen):
    """What turns the captions of a source into features."""

    encoder: str | None = None  # a Hugging Face folder, or package:NAME/FOLDER inside an installed Python package
    tokens: int = Field(32, gt=0)  # text tokens a caption is cut or padded to
    # What the published code writes around captions, the empty one included.
    aspect_ratio: str | None = Field(None, pattern=r"^\d+:\d+$")  # "in a 3:2 aspect ratio."
    fps: int | None = Field(None, ge=0)  # "A video with 16 fps:"; 0: "An image:"
    noise_level: int | None = Field(None, ge=0)  # "Noise Level 300:", thousandths of noise_std

    @property
    def text(self) -> TextEncoding | None:
        """How captions are encoded; None without an encoder."""
        if self.encoder is None:
            return None
        template = caption_template(self.aspect_ratio, self.fps, self.noise_level)
        return TextEncoding(encoder=self.encoder, template=template)


class FolderSource(Captioned, Latents):
    """Image files of one size under a folder; the class is the first sub-folder, or the text a caption."""

    kind: Literal["folder"]
    path: Path
    mode: Literal["L", "RGB"] = "RGB"
    size: int | None = Field(None, gt=0)  # scale the short side to this and crop the centre; None: sizes must agree
    captions: Path | None = None  # .jsonl ({"file", "caption"} a line) or .csv (columns file, caption)
    holdout: float = Field(0.05, gt=0, lt=1)  # part kept away from training, for evaluation

    @model_validator(mode="after")
    def _captions_need_an_encoder(self) -> Self:
        if (self.captions is None) != (self.encoder is None):
            raise ValueError("captions and encoder belong together; name both or neither")
        return self


class NpzSource(Captioned, Latents):
    """Arrays: `images` uint8 [N, H, W(, C)], and `test_*` of each.

    Conditions are `labels` int [N], `features` float32 [N, T, W] or, with an encoder, `captions` str [N].
    """

    kind: Literal["npz"]
    path: Path
    holdout: float = Field(0.05, gt=0, lt=1)  # used when the file holds no test_images


class Digits8Source(Latents):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, ten classes."""

    kind: Literal["digits8"]
    holdout: float = Field(0.1, gt=0, lt=1)


class PointsSource(Frozen):
    """Points in the plane, drawn anew from a distribution that is known in closed form; for continuous flows."""

    kind: Literal["points"]
    shape: Literal["normal", "eight_gaussians", "moons", "checkerboard"]
    count: int = Field(20_000, gt=1)
    holdout: float = Field(0.1, gt=0, lt=1)


ImageSource = Annotated[FolderSource | NpzSource | Digits8Source, Field(discriminator="kind")]
DataSource = Annotated[FolderSource | NpzSource | Digits8Source | PointsSource, Field(discriminator="kind")]


class RunSettings(Frozen):
    """How to run a training. A step is one update of the weights."""

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
    shift: int = Field(0, ge=0)  # augmentation: move by up to this many pixels, repeating the border
    flip: bool = False  # augmentation: mirror left-right
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # autocast; weights and averages stay fp32. fp16: CUDA only
    compile: bool = False  # torch.compile: for long runs on a GPU; an H100 spent more than a minute on compiling
    seed: int = Field(0, ge=0)  # weights, batches, noise: the run is a function of it
    device: str = "auto"  # auto: cuda if there is one, else cpu
    threads: int | None = Field(None, gt=0)  # CPU threads; None: torch's choice
    log_every: int = Field(20, gt=0)
    evaluate_every: int = Field(1000, gt=0)  # figures on held-out images
    sample_every: int = Field(1000, gt=0)  # a grid of samples, or of reconstructions
    checkpoint_every: int = Field(1000, gt=0)  # state to resume from, and checkpoint
    half_checkpoint: bool = False  # store the checkpoint's weights in fp16

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("name either steps or epochs")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        return self


class Training(RunSettings):
    """How to train a flow."""

    noise_std: float = Field(0.1, ge=0)  # Gaussian noise on x in [-1, 1], or on latents; 0: uniform noise of a level
    label_drop: float = Field(0.1, ge=0, le=1)  # part of the conditions replaced by the null one, for guidance
    sample_guidance: float = Field(0.0, ge=0)  # guidance weight of the sample grid


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


AnyRecipe = Recipe | AutoencoderRecipe | DecoderRecipe
KINDS: dict[str, type[AnyRecipe]] = {"autoencoder": AutoencoderRecipe, "decoder": DecoderRecipe}  # by their section


def _fields(*models: type[Frozen]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(field for model in models for field in model.model_fields))


# For the nearest name of a misspelt field.
KNOWN_FIELDS = {
    "model": _fields(StarflowConfig, TarflowConfig, ContinuousTransformerConfig, ContinuousMlpConfig),
    "data": _fields(FolderSource, NpzSource, Digits8Source, PointsSource),
    "objective": _fields(CfmConfig, OtCfmConfig, WeightedCfmConfig, AutoencoderObjective),
    "autoencoder": _fields(TinyConfig, KlConfig),
    "decoder": _fields(NoisyDecoderConfig),
    "training": tuple(Training.model_fields),
}


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe; its sections tell whether it trains a flow, an autoencoder or a decoder.

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
    kind = next((kind for section, kind in KINDS.items() if section in content), Recipe)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        known = KNOWN_FIELDS.get(str(place[0]) if len(place) > 1 else "", (*kind.model_fields, *KINDS))
        raise RecipeError(f"{path}: {one_line(error, known)}") from None


def load_flow_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """`load_recipe` for a flow's.

    Raises:
        RecipeError: it is another one; see also `load_recipe`.
    """
    recipe = load_recipe(path, overrides)
    if not isinstance(recipe, Recipe):
        raise RecipeError(
            f"{path}: found a recipe of {'an autoencoder' if isinstance(recipe, AutoencoderRecipe) else 'a decoder'}, expected a flow's"
        )
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


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    section, dot, field = key.strip().partition(".")
    if not equals or not dot or not isinstance(content.setdefault(section, {}), dict):
        raise RecipeError(f"--set {override}: expected section.field=value, such as training.steps=1000")
    try:
        content[section][field] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set {override}: {value!r} is not a YAML value") from None
