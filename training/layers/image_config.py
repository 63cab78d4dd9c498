"""What every flow over images is told, in either family: the size of an image, of a patch and of the network."""

from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from starflow.runtime.plain.errors import UsageError
from starflow.training.frozen import Frozen
from starflow.training.layers.model_limits import MOST_SIDE, MOST_TOKENS, MOST_WIDTH


class ImageConfig(Frozen):
    """Images [in_channels, img_size, img_size], cut into square patches that are the tokens of a transformer."""

    in_channels: int = Field(gt=0, le=MOST_WIDTH)
    img_size: int = Field(gt=0, le=MOST_SIDE)  # training size in pixels of the data, which may be latents
    patch_size: int = Field(1, gt=0)
    channels: int = Field(gt=0, le=MOST_WIDTH)
    head_dim: int = Field(64, gt=0, le=MOST_WIDTH)

    @model_validator(mode="after")
    def _patches_tile_the_image(self) -> Self:
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}")
        if self.side**2 > MOST_TOKENS or self.token_dim > MOST_WIDTH:
            raise ValueError(
                f"img_size {self.img_size} makes {self.side**2} tokens of {self.token_dim} values, too many"
            )
        return self

    @property
    def side(self) -> int:
        """Tokens along one side of an image."""
        return self.img_size // self.patch_size

    @property
    def token_dim(self) -> int:
        """Width D of a token (patch vector)."""
        return self.in_channels * self.patch_size**2

    def grid(self, shape: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of tokens in data [B, C, H, W] of this shape; UsageError if the data do not fit."""
        patch = self.patch_size
        if len(shape) != 4 or shape[1] != self.in_channels or shape[2] % patch or shape[3] % patch:
            raise UsageError(
                f"data of shape {tuple(shape)} does not fit [B, {self.in_channels}, H, W]"
                f" with H and W multiples of patch_size {patch}"
            )
        return shape[2] // patch, shape[3] // patch
