"""Images as latents: encoded once, kept in a file, and brought to the scale a flow likes."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starflow.runtime.plain.atomic_write import atomic_folder
from starflow.runtime.plain.errors import DataError, RecipeError, UsageError
from starflow.runtime.plain.progress import Report, progress_bar
from starflow.training.autoencoder.folder import (
    AutoencoderFolder,
    autoencoder_digest,
    copy_autoencoder,
    open_autoencoder,
)
from starflow.training.autoencoder.latent_space import LatentSpace
from starflow.training.autoencoder.network import Autoencoder
from starflow.training.config import LatentScaling
from starflow.training.data.samples import Dataset, to_float

BATCH = 16  # images encoded at once
AUTOENCODER = "autoencoder"  # in the cache


def as_latents(
    data: Dataset, folder: Path, given: LatentScaling | None, *, flip: bool, cache: Path, device: torch.device
) -> Dataset:
    """A data set of images as one of latents.

    Args:
        data: Images.
        folder: The autoencoder's.
        given: Scaling; None: as the autoencoder's record says, else measured on the images trained on.
        flip: Encode the mirror images trained on as well: an encoder does not commute with mirroring.
        cache: Folder the latents are kept in.
        device: Where to encode.

    Raises:
        RecipeError: the autoencoder does not take such images.
        DataError: latents are not finite, or cannot be kept.
        CheckpointError: `folder` is no autoencoder's.
    """
    source = open_autoencoder(folder)
    images = {"train": data.train.values, "test": data.test.values}
    if flip:
        images["mirrored"] = data.train.values.flip(3)
    channels, height, width = data.train.values.shape[1:]
    key = _key(folder, images)
    latents = cached_latents(source, images, cache, key, device)
    source = replace(source, path=cache / AUTOENCODER)  # whatever becomes of the folder that was named
    scaling = given or (source.record.latent if source.record else measured_scaling(latents["train"]))
    return replace(
        data,
        train=replace(data.train, values=latents["train"], mirrored=latents.get("mirrored")),
        test=replace(data.test, values=latents["test"]),
        latents=LatentSpace(source, (channels, height, width), scaling, key),
    )


@torch.inference_mode()
def encode_images(
    autoencoder: Autoencoder, pixels: Tensor, out: NDArray[np.float16], device: torch.device, report: Report
) -> None:
    """Encode images, uint8 [N, C, H, W], into `out`, float16 [N, c, h, w]: noise far above its rounding is added later.

    Raises:
        DataError: latents do not fit into float16, or are not finite.
    """
    autoencoder = autoencoder.to(device)
    for start in range(0, len(pixels), BATCH):
        part = autoencoder.encode(to_float(pixels[start : start + BATCH].to(device))).half()
        if not part.isfinite().all():
            raise DataError(f"images {start} to {start + len(part) - 1}: their latents are NaN or beyond float16")
        out[start : start + len(part)] = part.cpu().numpy()
        report(start + len(part), len(pixels))


def cached_latents(
    source: AutoencoderFolder, images: dict[str, Tensor], folder: Path, key: str, device: torch.device
) -> dict[str, Tensor]:
    """The latents of sets of images, from the cache or computed into it; they are mapped into memory, not read.

    Args:
        source: The autoencoder.
        images: uint8 [N, C, H, W] by name.
        folder: The cache: one .npy for each set, and a copy of the autoencoder. It is made anew when the key has changed.
        key: Digest of autoencoder and images.
        device: Where to encode.

    Raises:
        RecipeError: the autoencoder does not take such images.
        DataError: the cache cannot be written; see also `encode_images`.
    """
    known = folder / "key"
    if not known.is_file() or known.read_text(encoding="utf-8") != key:
        with atomic_folder(folder, replace=True) as temporary:
            for name, pixels in images.items():
                _, *shape = pixels.shape
                try:
                    latent = source.autoencoder.latent_shape((shape[0], shape[1], shape[2]))
                except UsageError as error:
                    raise RecipeError(f"data.autoencoder: {error}") from None
                try:
                    out = np.lib.format.open_memmap(
                        temporary / f"{name}.npy", mode="w+", dtype=np.float16, shape=(len(pixels), *latent)
                    )
                    with progress_bar(f"latents, {name}") as report:
                        encode_images(source.autoencoder, pixels, out, device, report)
                    out.flush()
                except OSError as error:
                    raise DataError(f"{folder}: latents cannot be kept: {error.strerror}") from None
            copy_autoencoder(source.path, temporary / AUTOENCODER)
            (temporary / "key").write_text(key, encoding="utf-8")
    # Mode c: PyTorch wants memory it may write to; nothing does.
    return {name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in images}


def _key(folder: Path, images: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(autoencoder_digest(folder).encode())
    for name, pixels in images.items():
        digest.update(f"{name} {tuple(pixels.shape)}".encode())
        digest.update(pixels.contiguous().numpy().data)
    return digest.hexdigest()


def measured_scaling(latents: Tensor) -> LatentScaling:
    """Shift and scale that give latents mean 0 and standard deviation 1, over all channels together."""
    count, total, squares = 0, 0.0, 0.0
    for part in latents.split(4096):
        values = part.double()
        count, total, squares = (
            count + values.numel(),
            total + float(values.sum()),
            squares + float(values.square().sum()),
        )
    mean = total / count
    return LatentScaling(scale=(squares / count - mean**2) ** -0.5, shift=mean)
