"""Images as latents: encoded once, kept in a file, and scaled for a flow."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starflow.runtime.plain.atomic_write import atomic_folder
from starflow.runtime.plain.errors import DataError, RecipeError, UsageError
from starflow.runtime.plain.own_folder import LATENTS
from starflow.runtime.plain.progress import Report, no_report, progress_bar
from starflow.training.autoencoder.folder import (
    autoencoder_digest,
    copy_autoencoder,
    open_autoencoder,
)
from starflow.training.autoencoder.latent_space import LatentSpace
from starflow.training.autoencoder.network import Autoencoder
from starflow.training.config import LatentScaling
from starflow.training.data.augmentation import Augmentation
from starflow.training.data.samples import Dataset, to_float
from starflow.training.data.stored_images import StoredImages
from starflow.training.random_streams import VIEWS, generator_for

BATCH = 16  # images encoded at once
AUTOENCODER = "autoencoder"  # in the cache


@dataclass(frozen=True)
class Views:
    """Augmented copies of every training image, drawn once."""

    augmentation: Augmentation
    most: int  # copies of an image, unless the augmentation has only one
    seed: int

    @property
    def count(self) -> int:
        """Number V of copies of an image; a mirror image is the only one of its kind."""
        if self.augmentation == Augmentation():
            return 0
        return 1 if self.augmentation.mirrors_only else self.most

    def of(self, images: Tensor, start: int, index: int) -> Tensor:
        """View `index` of images, uint8 [B, C, H, W], the first of which is image `start` of the training part."""
        if self.augmentation.mirrors_only:
            return images.flip(3)
        return self.augmentation(images, generator_for(self.seed, VIEWS, start * self.most + index))


def as_latents(
    data: Dataset, folder: Path, given: LatentScaling | None, views: Views, *, cache: Path, device: torch.device
) -> Dataset:
    """Turn a data set of images into one of latents, which are mapped into memory from `cache`.

    Args:
        given: Scaling; None takes it from the autoencoder's record, or measures it on the training images.
        views: Augmented copies of the training images, which are encoded as well: an encoder does not commute with changes
            of its images.
        cache: Folder that keeps the latents and a copy of the autoencoder; it is written anew if autoencoder or images
            have changed.

    Raises:
        RecipeError: the autoencoder does not take such images.
        DataError: latents are not finite, or cannot be written.
        CheckpointError: `folder` does not hold an autoencoder.
    """
    source = open_autoencoder(folder)
    images: dict[str, Tensor | StoredImages] = {
        "train": data.train.values,
        "validation": data.validation.values,
        "test": data.test.values,
    }
    channels, height, width = data.train.values.shape[1:]
    try:
        latent_shape = source.autoencoder.latent_shape((channels, height, width))
    except UsageError as error:
        raise RecipeError(f"data.autoencoder: {error}") from None
    names = [*images, *(["views"] if views.count else [])]
    key = _key(folder, images, views)
    if not (cache / "key").is_file() or (cache / "key").read_text(encoding="utf-8") != key:
        with atomic_folder(cache, LATENTS, replace=True) as temporary:
            try:
                for name, pixels in images.items():
                    out = allocate_array(temporary / f"{name}.npy", (len(pixels), *latent_shape))
                    with progress_bar(f"latents, {name}") as report:
                        encode_images(source.autoencoder, pixels, out, device, report)
                    out.flush()
                if views.count:
                    shape = (len(data.train), views.count, *latent_shape)
                    _encode_views(source.autoencoder, data.train.values, views, temporary, shape, device)
                copy_autoencoder(source.path, temporary / AUTOENCODER)
                (temporary / "key").write_text(key, encoding="utf-8")
            except OSError as error:
                raise DataError(f"{cache}: latents cannot be written: {error.strerror}") from None
    # Mode c: PyTorch wants writable memory; nothing writes to it.
    try:
        latents = {name: torch.from_numpy(np.load(cache / f"{name}.npy", mmap_mode="c")) for name in names}
    except (OSError, ValueError) as error:
        raise DataError(f"{cache}: is damaged ({error}); remove it, and the images are encoded again") from None
    source = replace(source, path=cache / AUTOENCODER)  # the folder that was named may change
    scaling = given or (source.record.latent if source.record else measured_scaling(latents["train"]))
    return replace(
        data,
        train=replace(data.train, values=latents["train"], views=latents.get("views")),
        validation=replace(data.validation, values=latents["validation"]),
        test=replace(data.test, values=latents["test"]),
        latents=LatentSpace(source, (channels, height, width), scaling, key),
    )


def allocate_array(path: Path, shape: tuple[int, ...]) -> "np.memmap[Any, np.dtype[np.float16]]":
    """A new .npy file, mapped into memory, float16. Its room on the disk is taken now: a mapping that lacks it ends the process.

    Raises:
        OSError: the disk is full.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


@torch.inference_mode()
def encode_images(
    autoencoder: Autoencoder,
    pixels: Tensor | StoredImages,
    out: NDArray[np.float16],
    device: torch.device,
    report: Report = no_report,
) -> None:
    """Encode images, uint8 [N, C, H, W], into `out`, float16 [N, c, h, w]: training adds noise far above its rounding.

    Raises:
        DataError: latents do not fit into float16, or are not finite.
    """
    autoencoder = autoencoder.to(device)
    for start in range(0, len(pixels), BATCH):
        part = autoencoder.encode(to_float(pixels[start : start + BATCH].to(device))).half()
        if not part.isfinite().all():
            raise DataError(
                f"images {start} to {start + len(part) - 1}: their latents are NaN or exceed the range of float16"
            )
        out[start : start + len(part)] = part.cpu().numpy()
        report(start + len(part), len(pixels))


def _encode_views(
    autoencoder: Autoencoder,
    pixels: Tensor | StoredImages,
    views: Views,
    folder: Path,
    shape: tuple[int, ...],
    device: torch.device,
) -> None:
    """Encode the views of images [N, C, H, W] into views.npy, float16 [N, V, c, h, w], one chunk of images at a time."""
    out = allocate_array(folder / "views.npy", shape)
    with progress_bar("latents, views") as report:
        for start in range(0, len(pixels), BATCH):
            part = pixels[start : start + BATCH].to(torch.device("cpu"))
            for index in range(views.count):
                encode_images(autoencoder, views.of(part, start, index), out[start : start + BATCH, index], device)
            report(start + len(part), len(pixels))
    out.flush()


def _key(folder: Path, images: dict[str, Tensor | StoredImages], views: Views) -> str:
    digest = hashlib.sha256(f"{autoencoder_digest(folder)} {views}".encode())
    for name, pixels in images.items():
        digest.update(f"{name} {tuple(pixels.shape)}".encode())
        if isinstance(pixels, StoredImages):
            digest.update(f"{pixels.store.digest} {pixels.mode}".encode())
            digest.update(pixels.index.numpy().data)
        else:
            digest.update(pixels.contiguous().numpy().data)
    return digest.hexdigest()


def measured_scaling(latents: Tensor) -> LatentScaling:
    """Shift and scale that give latents mean 0 and standard deviation 1, over all channels together."""
    count, total, squares = 0, 0.0, 0.0
    for part in latents.split(4096):
        values = part.double()
        count += values.numel()
        total += float(values.sum())
        squares += float(values.square().sum())
    mean = total / count
    return LatentScaling(scale=(squares / count - mean**2) ** -0.5, shift=mean)
