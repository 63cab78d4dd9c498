"""The encoder and the decoders of a bundle against PyTorch's.

Torch is imported where there is a checkpoint to compare with: verifying without one does without it.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starflow.export.verification.agreement import Measurement, compare
from starflow.export.verification.routes import NotRun
from starflow.export.verification.tolerances import Tolerances
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.networks.autoencoder import Autoencoder
from starflow.runtime.plain.errors import CheckpointError, UsageError

NAMES = {"encoder": "encoder", "plain": "decoder", "noisy": "noisy decoder"}


def autoencoder_folder(bundle: Bundle, checkpoint: Path | None, asked: Path | None) -> Path | NotRun | None:
    """The folder of the autoencoder a bundle was exported with, or why it is not compared; None where there is none.

    Args:
        bundle: The bundle.
        checkpoint: The checkpoint, which may hold it.
        asked: What the user names.

    Raises:
        UsageError: the user names one, and the bundle has none.
    """
    if bundle.manifest.autoencoder is None:
        if asked:
            raise UsageError(f"--autoencoder {asked}: this bundle holds no autoencoder")
        return None
    if asked:
        return asked
    if checkpoint:
        from starflow.training.checkpoint import AUTOENCODER

        inside = checkpoint / AUTOENCODER
        if inside.is_dir():
            return inside
    return NotRun("autoencoder", "is compared with PyTorch: name --checkpoint or --autoencoder")


def compare_autoencoder(bundle: Bundle, folder: Path, data: NDArray, tolerances: Tolerances) -> list[Measurement]:
    """Compare pixels of samples, decoded, and the latents of those pixels, encoded; a token is a pixel or a latent pixel.

    Args:
        bundle: The bundle.
        folder: The autoencoder it was exported with.
        data: [N, C, h, w] the reference's samples.
        tolerances: How far apart the two may be.

    Raises:
        CheckpointError: `folder` is no autoencoder's, or another one's.
    """
    import torch

    from starflow.training.autoencoder.folder import open_autoencoder

    spec, image = bundle.manifest.autoencoder, bundle.manifest.image
    assert spec is not None
    source, graphs = open_autoencoder(folder), Autoencoder(bundle, spec)
    if len(spec.decoders) > 1 and source.noisy is None:
        raise CheckpointError(f"{folder}: holds no decoder for noisy latents, {bundle.root} does; name --autoencoder")
    latents = torch.from_numpy(data / np.float32(image.scale) + np.float32(image.shift))
    pairs: dict[str, tuple[NDArray, NDArray]] = {}
    with torch.inference_mode():
        pixels = source.autoencoder.decode(latents)
        pairs["plain"] = pixels.numpy(), graphs.decode(data, noisy=False)
        if source.noisy is not None and len(spec.decoders) > 1:
            pairs["noisy"] = source.noisy.decode(latents).numpy(), graphs.decode(data, noisy=True)
        if spec.encoder:
            encoded = (source.autoencoder.encode(pixels).numpy() - image.shift) * image.scale
            pairs["encoder"] = encoded, graphs.encode(pixels.numpy())
    graphs.close()
    measurements = []
    for kind, (expected, found) in pairs.items():
        wanted, got = map(_as_tokens, (expected, found))
        whole = Block(
            index=0, identity=False, reversed=False, rows=1, prefix=0, first_token=0, capacity=wanted.shape[1]
        )
        tolerance = tolerances["fp32", "pixels"]  # weights are stored as they are in the folder
        measurements += compare(NAMES[kind], "pixels", {0: whole}, {0: wanted}, {0: got}, tolerance, "pixel")
    return measurements


def _as_tokens(image: NDArray) -> NDArray:
    """[N, C, H, W] as [N, H W, C]."""
    return np.ascontiguousarray(image.reshape(*image.shape[:2], -1).transpose(0, 2, 1))
