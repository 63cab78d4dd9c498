"""Compares the encoder and the decoders of a bundle with those of PyTorch.

Torch is imported only when there is an autoencoder to compare with: verifying without one does not need it.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starflow.export.verification.agreement import Measurement, compare_one
from starflow.export.verification.routes import NotRun
from starflow.export.verification.subject import Part
from starflow.export.verification.tolerances import Tolerances
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.networks.autoencoder import Autoencoder
from starflow.runtime.plain.errors import CheckpointError, UsageError


def autoencoder_folder(bundle: Bundle, checkpoint: Path | None, asked: Path | None) -> Path | NotRun | None:
    """The folder of the autoencoder a bundle was exported with, or why it is not compared; None where there is none.

    It is the folder that is asked for, else the one in the checkpoint.

    Raises:
        UsageError: a folder is asked for, and the bundle has no autoencoder.
    """
    if bundle.manifest.autoencoder is None:
        if asked:
            raise UsageError(f"--autoencoder {asked}: this bundle has no autoencoder")
        return None
    if checkpoint and not asked:
        from starflow.training.checkpoint import AUTOENCODER

        inside = checkpoint / AUTOENCODER
        asked = inside if inside.is_dir() else None
    return asked or NotRun("autoencoder", "it has no reference here; name --checkpoint or --autoencoder")


def compare_autoencoder(bundle: Bundle, folder: Path, data: NDArray, tolerances: Tolerances) -> list[Measurement]:
    """Compare pixels of samples, decoded, and the latents of those pixels, encoded; a token is a pixel or a latent pixel.

    `data` are the reference's samples, [N, C, h, w].

    Raises:
        CheckpointError: `folder` is not that of the autoencoder the bundle was exported with.
    """
    import torch

    from starflow.training.autoencoder.folder import open_autoencoder

    spec, image = bundle.manifest.autoencoder, bundle.manifest.image
    assert spec is not None
    source, graphs = open_autoencoder(folder), Autoencoder(bundle, spec)
    if len(spec.decoders) > 1 and source.noisy is None:
        raise CheckpointError(
            f"{folder}: has no decoder for noisy latents, but {bundle.root} has one; name its autoencoder with --autoencoder"
        )
    latents = torch.from_numpy(data / np.float32(image.scale) + np.float32(image.shift))
    pairs: dict[str, tuple[NDArray, NDArray]] = {}
    with torch.inference_mode():
        pixels = source.autoencoder.decode(latents)
        pairs["decoder"] = pixels.numpy(), graphs.decode(data, noisy=False)
        if source.noisy is not None and len(spec.decoders) > 1:
            pairs["noisy decoder"] = source.noisy.decode(latents).numpy(), graphs.decode(data, noisy=True)
        if spec.encoder:
            encoded = (source.autoencoder.encode(pixels).numpy() - image.shift) * image.scale
            pairs["encoder"] = encoded, graphs.encode(pixels.numpy())
    graphs.close()
    measurements: list[Measurement] = []
    part, tolerance = (
        Part("the image", unit="pixel"),
        tolerances["fp32", "pixels"],
    )  # weights are stored as in the folder
    for name, pair in pairs.items():
        expected, found = map(_as_tokens, pair)
        measurements += compare_one(name, "pixels", part, expected, found, tolerance)
    return measurements


def _as_tokens(image: NDArray) -> NDArray:
    """[N, C, H, W] as [N, H W, C]."""
    return np.ascontiguousarray(image.reshape(*image.shape[:2], -1).transpose(0, 2, 1))
