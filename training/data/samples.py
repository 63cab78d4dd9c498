"""What a model is trained on: samples and conditions in memory, images as uint8."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from starflow.training.autoencoder.latent_space import LatentSpace
from starflow.training.config import Conditioning, TextEncoding
from starflow.training.text.text_features import TextFeatures


class Batch(NamedTuple):
    """Samples on a device."""

    values: Tensor
    # int64 [B] class labels, float32 [B, T, W] text features, or None; the others are as in `Samples`.
    condition: Tensor | None
    mirrored: Tensor | None = None


@dataclass(frozen=True)
class Samples:
    """Images, latents or points, and their conditions."""

    # Images uint8 [N, C, H, W], unscaled latents of images float16 [N, C, h, w], or points float32 [N, D].
    values: Tensor
    # Class labels int64 [N], features of N captions, any features float32 [N, T, W], or None.
    condition: Tensor | TextFeatures | None
    mirrored: Tensor | None = None  # latents of the mirror images, shaped as `values`, or None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor) -> "Samples":
        condition = None if self.condition is None else self.condition[index]
        return Samples(self.values[index], condition, None if self.mirrored is None else self.mirrored[index])

    def to(self, device: torch.device) -> Batch:
        condition = self.condition.padded() if isinstance(self.condition, TextFeatures) else self.condition
        return Batch(
            self.values.to(device),
            None if condition is None else condition.to(device),
            None if self.mirrored is None else self.mirrored.to(device),
        )

    @property
    def nbytes(self) -> int:
        """Memory of the samples, in bytes."""
        return sum(part.nbytes for part in (self.values, self.condition, self.mirrored) if part is not None)

    def resident(self, device: torch.device) -> "Samples":
        """The same samples in a device's memory."""
        condition = None if self.condition is None else self.condition.to(device)
        mirrored = None if self.mirrored is None else self.mirrored.to(device)
        return Samples(self.values.to(device), condition, mirrored)


@dataclass(frozen=True)
class Dataset:
    """Samples to train on, held-out samples, and the condition that stands for "no condition"."""

    train: Samples
    test: Samples
    conditioning: Conditioning
    # The null class (int64 []) or the features of an empty text (float32 [T, W]); None without conditions.
    null: Tensor | None
    text: TextEncoding | None = None  # how captions became features; None without captions
    latents: LatentSpace | None = None  # the space of the latents; None if the values are images or points

    @property
    def kind(self) -> Literal["images", "latents", "points"]:
        """What the values are."""
        if self.latents is not None:
            return "latents"
        return "images" if self.train.values.dtype == torch.uint8 else "points"

    def as_float(self, values: Tensor) -> Tensor:
        """Values as a model takes them: images in [-1, 1], latents scaled, points as they are; float32."""
        if self.latents is not None:
            return self.latents.scaled(values)
        return to_float(values) if self.kind == "images" else values

    def without_conditions(self) -> "Dataset":
        """The images alone."""
        train, test = (replace(part, condition=None) for part in (self.train, self.test))
        return replace(self, train=train, test=test, conditioning=Conditioning(), null=None, text=None)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1]."""
    return pixels.float() / 127.5 - 1.0


def mirror_images(values: Tensor, mirrored: Tensor, generator: torch.Generator) -> Tensor:
    """Put the mirror image, from `mirrored`, in the place of every other image of [B, C, H, W], drawn at random."""
    chosen = torch.rand(len(values), generator=generator, device=values.device) < 0.5
    return torch.where(chosen[:, None, None, None], mirrored, values)


def shift_images(pixels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each image of [B, C, H, W] by up to `most` pixels along both axes, repeating its border."""
    count, _, height, width = pixels.shape
    moves = torch.randint(-most, most + 1, (2, count, 1), generator=generator, device=pixels.device)
    rows = (torch.arange(height, device=pixels.device) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=pixels.device) + moves[1]).clamp(0, width - 1)
    image = torch.arange(count, device=pixels.device)[:, None, None]
    return pixels[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
