"""`config.json` of a checkpoint: the model of either family, its conditions and its data."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from starflow.runtime.plain.caption_template import CAPTION
from starflow.training.autoregressive.config import AutoregressiveConfig, StarflowConfig
from starflow.training.continuous.config import ContinuousConfig
from starflow.training.frozen import Frozen
from starflow.training.layers.model_limits import MOST_CLASSES, MOST_SIDE, MOST_TOKENS, MOST_WIDTH

ModelConfig = Annotated[AutoregressiveConfig | ContinuousConfig, Field(discriminator="family")]


class Conditioning(Frozen):
    """What a model is conditioned on, in the user's terms."""

    kind: Literal["none", "class", "features"] = "none"
    num_classes: int = Field(0, ge=0, le=MOST_CLASSES)
    class_names: tuple[str, ...] | None = None
    tokens: int = Field(0, ge=0, le=MOST_TOKENS)
    width: int = Field(0, ge=0, le=MOST_WIDTH)


class LatentScaling(Frozen):
    """The flow sees (latent - shift) * scale."""

    scale: float = Field(1.0, gt=0)
    shift: float = 0.0


class TextEncoding(Frozen):
    """Where the features of captions come from; the model's `txt_size` and `txt_dim` tell their number and width."""

    # Folder of the text encoder, `package:NAME/FOLDER` for one inside a Python package, or its published name.
    encoder: str
    # What the tokenizer gets for a caption, the empty one included; `{caption}` stands for the caption and
    # `{aspect_ratio}`, if it occurs, for the image's, such as "3:2".
    template: str = CAPTION

    @field_validator("template")
    @classmethod
    def _holds_the_caption_once(cls, value: str) -> str:
        if value.count(CAPTION) != 1:
            raise ValueError(f"found {value!r}, expected a text that contains {CAPTION} once")
        return value


Side = Annotated[int, Field(gt=0, le=MOST_SIDE)]
PixelShape = tuple[Side, Side, Side]


class LatentAutoencoder(Frozen):
    """The autoencoder of a flow over latents: in the checkpoint's `autoencoder/`, or named at export."""

    pixel_shape: PixelShape  # [C, H, W] of the images that its decoder makes


class ImageRange(Frozen):
    """What the flow's data become: grey or colour images, through the decoder if there is one, or bare latents."""

    mode: Literal["L", "RGB", "latent"] = "RGB"


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
            if isinstance(model, StarflowConfig):
                if model.txt_size != 1:
                    raise ValueError(
                        f"model.txt_size: found {model.txt_size}, expected 1 token for conditioning.kind class"
                    )
                field, expected = "txt_dim (classes + 1)", model.txt_dim - 1
            else:
                field, expected = "num_classes", getattr(model, "num_classes", 0)
            if conditioning.num_classes != expected:
                raise ValueError(f"conditioning.num_classes {conditioning.num_classes} does not fit model.{field}")
            names = conditioning.class_names
            if names is not None and len(names) != conditioning.num_classes:
                raise ValueError(f"found {len(names)} class_names for {conditioning.num_classes} classes")
        return self
