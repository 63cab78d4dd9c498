"""The `data` section of a recipe: where samples and their conditions come from."""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from starflow.runtime.plain.limits import MOST_PIXELS, MOST_THREADS
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
    captions: Path | None = None  # .jsonl ({"file", "caption"} a line) or .csv (these columns); or "file_name", "text"
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


class StreamedSource(Captioned, Latents):
    """Images that stay on disk; those of a few batches are in memory."""

    mode: Literal["L", "RGB"] = "RGB"
    size: int = Field(gt=0, le=math.isqrt(MOST_PIXELS))  # scale the short side to this and crop the centre
    readers: int = Field(4, gt=0, le=MOST_THREADS)  # threads of every process that read and decode images
    holdout: float = Field(0.05, gt=0, lt=1)  # share kept for the test
    validation: float = Field(0.05, gt=0, lt=1)  # share kept to choose the best checkpoint by

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape [C, H, W] of the images."""
        return 1 if self.mode == "L" else 3, self.size, self.size


class WebDatasetSource(StreamedSource):
    """Tar files in which KEY.jpg (or another image), KEY.cls (the class) and KEY.txt (the caption) are one sample."""

    kind: Literal["webdataset"]
    # Paths of tar files, with {000..031} for a range of numbers, or with *.
    shards: str | Annotated[tuple[str, ...], Field(min_length=1)]
    # Shards come in a random order, and samples mix with so many neighbours; None: with all of them.
    shuffle_buffer: int | None = Field(10_000, gt=0)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The paths of the shards, as the recipe names them."""
        return (self.shards,) if isinstance(self.shards, str) else self.shards


class HuggingFaceSource(StreamedSource):
    """A folder that `save_to_disk` of the library `datasets` wrote, with its splits `validation` and `test` if it has them."""

    kind: Literal["huggingface"]
    path: Path
    image: str = "image"  # the column of images
    label: str | None = None  # the column of classes
    caption: str | None = None  # the column of captions
    holdout: float = Field(0.05, gt=0, lt=1)  # used when the folder has no split `test`
    validation: float = Field(0.05, gt=0, lt=1)  # used when the folder has no split `validation`

    @model_validator(mode="after")
    def _has_one_condition(self) -> Self:
        if (self.caption is None) != (self.encoder is None):
            raise ValueError("caption and encoder belong together; give both or neither")
        if self.caption is not None and self.label is not None:
            raise ValueError("label and caption: found both; a model is conditioned on one of them")
        return self


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


AnyImages = FolderSource | NpzSource | WebDatasetSource | HuggingFaceSource | Digits8Source
ImageSource = Annotated[AnyImages, Field(discriminator="kind")]
DataSource = Annotated[AnyImages | PointsSource, Field(discriminator="kind")]
