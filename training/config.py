"""`config.json` of a checkpoint: the model of either family, and what stands around it."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from starflow.runtime.plain.caption_template import CAPTION
from starflow.training.autoregressive.config import AutoregressiveConfig, StarflowConfig
from starflow.training.continuous.config import ContinuousConfig
from starflow.training.frozen import Frozen

ModelConfig = Annotated[AutoregressiveConfig | ContinuousConfig, Field(discriminator="family")]


class Conditioning(Frozen):
    """What a model is conditioned on, in the user's terms."""

    kind: Literal["none", "class", "features"] = "none"
    num_classes: int = 0
    class_names: tuple[str, ...] | None = None
    tokens: int = 0
    width: int = 0


class LatentScaling(Frozen):
    """The flow sees (latent - shift) * scale."""

    scale: float = 1.0
    shift: float = 0.0


class TextEncoding(Frozen):
    """Where the features a model is conditioned on come from; `txt_size` and `txt_dim` tell how many of what width.

    Attributes:
        encoder: The text encoder's folder, `package:NAME/FOLDER` for one inside a Python package, or the name it is
            published under.
        template: What the tokenizer gets for a caption, the empty one included; `{caption}` stands for it, and
            `{aspect_ratio}`, where it occurs, for that of the image, such as "3:2".
    """

    encoder: str
    template: str = CAPTION

    @field_validator("template")
    @classmethod
    def _holds_the_caption_once(cls, value: str) -> str:
        if value.count(CAPTION) != 1:
            raise ValueError(f"found {value!r}, expected a text with {CAPTION} in it, once")
        return value


class LatentAutoencoder(Frozen):
    """The flow's data are latents of the autoencoder in the checkpoint's `autoencoder/`, or of one named at export.

    Attributes:
        pixel_shape: [C, H, W] of the images its decoder makes.
    """

    pixel_shape: tuple[int, int, int]


class ImageRange(Frozen):
    """What the flow's data become: grey or colour images (through the decoder, where there is one), or bare latents."""

    mode: Literal["L", "RGB", "latent"] = "RGB"


def _class_count(model: ModelConfig) -> tuple[str, int]:
    """The field of a model that says how many classes it knows, and the number."""
    if isinstance(model, StarflowConfig):
        return "txt_dim (classes + 1)", model.txt_dim - 1
    return "num_classes", getattr(model, "num_classes", 0)


class CheckpointConfig(Frozen):
    """`config.json` of a checkpoint folder."""

    format_version: Literal[1] = 1
    model: ModelConfig
    conditioning: Conditioning = Conditioning()
    latent: LatentScaling = LatentScaling()
    noise_std: float = Field(0.0, ge=0)  # standard deviation of the noise added to the data in training
    image: ImageRange = ImageRange()
    text: TextEncoding | None = None
    autoencoder: LatentAutoencoder | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "CheckpointConfig":
        conditioning, model = self.conditioning, self.model
        if conditioning.kind == "class":
            field, expected = _class_count(model)
            if conditioning.num_classes != expected:
                raise ValueError(f"conditioning.num_classes {conditioning.num_classes} does not fit model.{field}")
            names = conditioning.class_names
            if names is not None and len(names) != conditioning.num_classes:
                raise ValueError(f"{len(names)} class_names for {conditioning.num_classes} classes")
        return self
