"""The `data` section of a recipe: where samples and their conditions come from."""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from starflow.runtime.plain.limits import MOST_PIXELS
from starflow.training.config import LatentScaling, TextEncoding
from starflow.training.frozen import Frozen
from starflow.training.layers.model_limits import MOST_TOKENS
from starflow.training.text.captions import caption_template


class Latents(Frozen):
    """What turns the images of a source into latents, for a flow; an autoencoder is trained on the images."""

    autoencoder: Path | None = None  # a checkpoint of an autoencoder, or any diffusers folder; None: pixels
    latent_scale: float | None = Field(None, gt=0)  # the flow sees (latent - shift) * scale
    latent_shift: float | None = None  # None, both: as the autoencoder's checkpoint says, or else measured

    @model_validator(mode="after")
    def _scaling_is_whole(self) -> Self:
        if (self.latent_scale is None) != (self.latent_shift is None):
            raise ValueError("latent_scale and latent_shift belong together; give both or neither")
        if self.latent_scale is not None and self.autoencoder is None:
            raise ValueError("latent_scale needs latents; add an autoencoder")
        return self

    @property
    def latent(self) -> LatentScaling | None:
        """The scaling, if the recipe gives one."""
        if self.latent_scale is None or self.latent_shift is None:
            return None
        return LatentScaling(scale=self.latent_scale, shift=self.latent_shift)


class Captioned(Frozen):
    """What turns the captions of a source into features."""

    encoder: str | None = None  # a Hugging Face folder, or package:NAME/FOLDER inside an installed Python package
    tokens: int = Field(32, gt=0, le=MOST_TOKENS)  # text tokens a caption is cut or padded to
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
    size: int | None = Field(
        None, gt=0, le=math.isqrt(MOST_PIXELS)
    )  # scale the short side to this and crop the centre; None: sizes must agree
    captions: Path | None = None  # .jsonl ({"file", "caption"} a line) or .csv (columns file, caption)
    holdout: float = Field(0.05, gt=0, lt=1)  # share kept for the test
    validation: float = Field(0.05, gt=0, lt=1)  # share kept to choose the best checkpoint by

    @model_validator(mode="after")
    def _captions_need_an_encoder(self) -> Self:
        if (self.captions is None) != (self.encoder is None):
            raise ValueError("captions and encoder belong together; give both or neither")
        return self

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Shape [C, H, W] of the images; None if only the files tell."""
        return None if self.size is None else (1 if self.mode == "L" else 3, self.size, self.size)


class NpzSource(Captioned, Latents):
    """Arrays: `images` uint8 [N, H, W(, C)], and `validation_*` and `test_*` of each.

    Conditions are `labels` int [N], `features` float32 [N, T, W] or, with an encoder, `captions` str [N].
    """

    kind: Literal["npz"]
    path: Path
    holdout: float = Field(0.05, gt=0, lt=1)  # used when the file holds no test_images
    validation: float = Field(0.05, gt=0, lt=1)  # used when the file holds no validation_images


class Digits8Source(Latents):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, ten classes."""

    kind: Literal["digits8"]
    holdout: float = Field(0.1, gt=0, lt=1)
    validation: float = Field(0.05, gt=0, lt=1)


class PointsSource(Frozen):
    """Points in the plane, drawn anew from a distribution that is known in closed form; for continuous flows."""

    kind: Literal["points"]
    shape: Literal["normal", "eight_gaussians", "moons", "checkerboard", "gaussian_mixture", "five_gaussians"]
    count: int = Field(20_000, gt=1, le=100_000_000)
    holdout: float = Field(0.1, gt=0, lt=1)
    validation: float = Field(0.05, gt=0, lt=1)


ImageSource = Annotated[FolderSource | NpzSource | Digits8Source, Field(discriminator="kind")]
DataSource = Annotated[FolderSource | NpzSource | Digits8Source | PointsSource, Field(discriminator="kind")]
