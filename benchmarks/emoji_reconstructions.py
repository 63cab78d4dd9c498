"""How well do decoders bring held-out emoji back from noisy latents: PSNR, Fréchet distance and sharpness, and a picture.

Latents get the noise that the flow is trained with, as its samples have it. The Fréchet distance is that of the features of an
ImageNet network (EfficientNet-Lite0) to those of the same emoji themselves. Sharpness is the mean length of a picture's gradient,
over that of the emoji: a decoder that smears has less. The first line is the plain decoder of the first folder.

Needs `python examples/emoji/fetch.py`.

Examples:
  python -m benchmarks.emoji_reconstructions examples/emoji/checkpoint/autoencoder
  python -m benchmarks.emoji_reconstructions examples/emoji/checkpoint/autoencoder out/emoji/decoder/checkpoint-best --picture decoders.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from benchmarks.image_features import image_features
from numpy.typing import NDArray

from starflow.calibration.frechet import frechet_distance
from starflow.runtime.plain.images import grid, to_uint8, write_png
from starflow.training.autoencoder.folder import open_autoencoder
from starflow.training.autoencoder.network import Autoencoder
from starflow.training.autoencoder.trainer import psnr
from starflow.training.data.samples import to_float

ARCHIVE = Path("out/emoji/emoji-varied.npz")
BATCH, SHOWN = 32, 12


@torch.inference_mode()
def reconstructed(
    encoder: Autoencoder, decoder: Autoencoder, images: NDArray[np.uint8], noise: float
) -> NDArray[np.uint8]:
    """Images [N, H, W, 3] after encoding, noise on the latents, and decoding; every decoder gets the same noise."""
    generator, made = torch.Generator().manual_seed(0), []
    for start in range(0, len(images), BATCH):
        pixels = to_float(torch.from_numpy(images[start : start + BATCH].transpose(0, 3, 1, 2).copy()))
        latents = encoder.encode(pixels)
        latents += noise * torch.randn(latents.shape, generator=generator)
        made.append(to_uint8(decoder.decode(latents).numpy()))
    return np.concatenate(made)


def gradient(images: NDArray[np.uint8]) -> float:
    """Mean length of the gradient, in grey levels for a pixel."""
    grey = images.astype(np.float64).mean(3)
    across, down = np.diff(grey, axis=2)[:, :-1], np.diff(grey, axis=1)[:, :, :-1]
    return float(np.hypot(across, down).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "autoencoders", type=Path, nargs="+", help="folders of autoencoders with a decoder for noisy latents"
    )
    parser.add_argument("--noise", type=float, default=0.2, help="of latents of standard deviation 1 (default: 0.2)")
    parser.add_argument(
        "--picture", type=Path, help="write a PNG: emoji above, below them what each decoder makes of them"
    )
    arguments = parser.parse_args()
    with np.load(ARCHIVE) as file:
        images = file["test_images"]
    features, sharp, rows = image_features(images), gradient(images), [images[:: len(images) // SHOWN][:SHOWN]]
    print(f"{len(images)} held-out emoji, noise {arguments.noise}")
    print(f"{'decoder':<50}{'PSNR, dB':>10}{'Fréchet':>10}{'sharpness':>10}")
    folders = [open_autoencoder(path) for path in arguments.autoencoders]
    ways = [(f"{folders[0].path}, plain", folders[0], folders[0].autoencoder)]
    for folder in folders:
        if folder.noisy is None:
            raise SystemExit(
                f"{folder.path}: has no decoder for noisy latents; train one by examples/emoji/decoder.yaml"
            )
        ways.append((str(folder.path), folder, folder.noisy))
    for name, folder, decoder in ways:
        if folder.record is None:
            raise SystemExit(f"{folder.path}: has no starflow.json, which tells the scale of its latents")
        made = reconstructed(folder.autoencoder, decoder, images, arguments.noise / folder.record.latent.scale)
        found, wanted = (to_float(torch.from_numpy(each)) for each in (made, images))
        decibels, distance = float(psnr(found, wanted).mean()), frechet_distance(image_features(made), features)
        print(f"{name[-49:]:<50}{decibels:>10.2f}{distance:>10.1f}{gradient(made) / sharp:>10.3f}", flush=True)
        rows.append(made[:: len(images) // SHOWN][:SHOWN])
    if arguments.picture:
        write_png(arguments.picture, grid(np.concatenate(rows), SHOWN))


if __name__ == "__main__":
    main()
