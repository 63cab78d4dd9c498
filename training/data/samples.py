"""What a model is trained on: samples in memory or on disk, images as uint8, and their conditions."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from starflow.training.autoencoder.latent_space import LatentSpace
from starflow.training.config import Conditioning, TextEncoding
from starflow.training.data.stored_images import StoredImages
from starflow.training.text.text_features import TextFeatures


class Batch(NamedTuple):
    """Samples on a device."""

    values: Tensor
    # int64 [B] class labels, float32 [B, T, W] text features, or None; the others are as in `Samples`.
    condition: Tensor | None
    views: Tensor | None = None


@dataclass(frozen=True)
class Samples:
    """Images, latents or points, and their conditions."""

    # Images uint8 [N, C, H, W], unscaled latents of images float16 [N, C, h, w], or points float32 [N, D].
    # Images may lie on disk.
    values: Tensor | StoredImages
    # Class labels int64 [N], features of N captions, any features float32 [N, T, W], or None.
    condition: Tensor | TextFeatures | None
    views: Tensor | None = None  # latents float16 [N, V, C, h, w] of V augmented copies of every image, or None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor) -> "Samples":
        condition = None if self.condition is None else self.condition[index]
        return Samples(self.values[index], condition, None if self.views is None else self.views[index])

    @property
    def tensor(self) -> Tensor:
        """The values in memory; those on disk are decoded."""
        return self.values if isinstance(self.values, Tensor) else self.values.to(torch.device("cpu"))

    def order(self, generator: torch.Generator) -> Tensor:
        """The order of an epoch, int64 [N]."""
        if isinstance(self.values, StoredImages):
            return self.values.order(generator)
        return torch.randperm(len(self), generator=generator)

    def to(self, device: torch.device) -> Batch:
        """The samples on a device; those on disk are decoded."""
        condition = self.condition.padded() if isinstance(self.condition, TextFeatures) else self.condition
        return Batch(
            self.values.to(device),
            None if condition is None else condition.to(device),
            None if self.views is None else self.views.to(device),
        )

    @property
    def nbytes(self) -> int:
        """Memory of the samples, in bytes."""
        return sum(part.nbytes for part in (self.values, self.condition, self.views) if part is not None)

    def resident(self, device: torch.device) -> Self:
        """The same samples in a device's memory."""
        condition = None if self.condition is None else self.condition.to(device)
        views = None if self.views is None else self.views.to(device)
        return replace(self, values=self.values.to(device), condition=condition, views=views)


@dataclass(frozen=True)
class Dataset:
    """Samples to train on, two parts that are held out, and the condition that stands for "no condition"."""

    train: Samples
    validation: Samples  # what checkpoints are chosen by
    test: Samples  # what no choice depends on
    conditioning: Conditioning
    # The null class (int64 []) or the features of an empty text (float32 [T, W]); None without conditions.
    null: Tensor | None
    text: TextEncoding | None = None  # how captions became features; None without captions
    split: str = ""  # digest of the indices of `train`
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
        train, validation, test = (replace(part, condition=None) for part in (self.train, self.validation, self.test))
        parts = replace(self, train=train, validation=validation, test=test)
        return replace(parts, conditioning=Conditioning(), null=None, text=None)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1]."""
    return pixels.float() / 127.5 - 1.0


def choose_views(batch: Batch, generator: torch.Generator) -> Tensor:
    """The values of a batch, or one of their views in their place; each is as likely as the others."""
    if batch.views is None:
        return batch.values
    count, views = batch.views.shape[:2]
    chosen = torch.randint(0, views + 1, (count,), generator=generator, device=batch.values.device)
    image = torch.arange(count, device=batch.values.device)
    others = batch.views[image, (chosen - 1).clamp(min=0)]
    return torch.where((chosen == 0)[:, None, None, None], batch.values, others)
