"""`starflow score` on held-out images against the likelihood that training computes in PyTorch: the same images, conditions and noise.

The bundle encodes images and captions itself, with its own graphs; the other side reads the checkpoint's autoencoder and text encoder
with PyTorch. Exits with 1 if the means differ by more than 1e-4 bits/dim.

Examples:
  python -m benchmarks.likelihood_agreement out/demo/bundle examples/digits/checkpoint out/digits/digits.npz
  python -m benchmarks.likelihood_agreement out/emoji/bundle out/emoji/run/checkpoint out/emoji/emoji-text.npz
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from starflow.runtime.command_line import main as starflow
from starflow.runtime.plain.bits_per_dim import bits_per_dim
from starflow.training.autoencoder.folder import open_autoencoder
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.checkpoint import AUTOENCODER, load_autoregressive
from starflow.training.config import CheckpointConfig
from starflow.training.text.text_features import caption_features

LEVEL = 1 / 127.5  # one grey level in [-1, 1]
SEED = 0  # of the noise that `starflow score` adds
BATCH = 50
TOLERANCE = 1e-4  # bits/dim


def score(bundle: Path, pictures: Sequence[Image.Image], *options: str) -> NDArray[np.float64]:
    """Bits/dim [N] of pictures by `starflow score`."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{index:05d}.png") for index in range(len(pictures))]
        for file, picture in zip(files, pictures, strict=True):
            picture.save(file)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = starflow(["score", str(bundle), *files, "--seed", str(SEED), "--json", *options])
    if status:
        sys.exit(status)
    return np.array([each["bits_per_dim"] for each in json.loads(printed.getvalue())["images"]])


@torch.inference_mode()
def training_bits(checkpoint: Path, images: NDArray[np.uint8], condition: NDArray) -> NDArray[np.float64]:
    """Bits/dim [N] of images [N, H, W] or [N, H, W, 3] by the PyTorch model.

    Args:
        checkpoint: Its folder.
        images: The images.
        condition: Labels int64 [N], or captions str [N].
    """
    config, model = load_autoregressive(checkpoint)
    channels_first = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    x = torch.from_numpy(channels_first.astype(np.float32)) * LEVEL - 1
    level = LEVEL
    if config.autoencoder:
        autoencoder, level = open_autoencoder(checkpoint / AUTOENCODER).autoencoder, 1.0  # latents have no levels
        latent = torch.cat([autoencoder.encode(part) for part in x.split(BATCH)])
        x = (latent - config.latent.shift) * config.latent.scale
    noise = np.random.default_rng(SEED).standard_normal(tuple(x.shape), np.float32)
    x = x + config.noise_std * torch.from_numpy(noise)
    y = _condition(config, model, condition)
    nats = torch.cat([model.log_likelihood(x[part], y[part]) for part in torch.arange(len(x)).split(BATCH)])
    found: NDArray[np.float64] = bits_per_dim(nats.double(), x[0].numel(), span=256 * level).numpy()
    return found


def _condition(config: CheckpointConfig, model: AutoregressiveFlow, condition: NDArray) -> Tensor:
    if config.text is None:
        return model.encode_labels(torch.from_numpy(condition.astype(np.int64)))
    with tempfile.TemporaryDirectory() as folder:
        tokens = config.conditioning.tokens
        return caption_features(condition.tolist(), config.text, tokens, Path(folder) / "features.npz").padded()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path, help="the one it was exported from")
    parser.add_argument("data", type=Path, help="archive of the recipe: test_images, and test_labels or test_captions")
    parser.add_argument("--count", type=int, default=200, help="images (default: 200)")
    arguments = parser.parse_args()
    with np.load(arguments.data) as file:
        name = "test_captions" if "test_captions" in file.files else "test_labels"
        chosen = np.random.default_rng(0).permutation(len(file[name]))[: arguments.count]
        images, condition = file["test_images"][chosen], file[name][chosen]
    given = ["--captions", *condition] if name == "test_captions" else ["--labels", ",".join(map(str, condition))]
    noise_std = load_autoregressive(arguments.checkpoint)[0].noise_std
    pictures = [Image.fromarray(image) for image in images]
    scored = score(arguments.bundle, pictures, "--noise-std", str(noise_std), *given)
    trained = training_bits(arguments.checkpoint, images, condition)
    distance = abs(float(scored.mean() - trained.mean()))
    print(
        f"{len(images)} held-out images with their condition, noise {noise_std:g}: starflow score {scored.mean():.6f}, training "
        f"{trained.mean():.6f} bits/dim; means differ by {distance:.1e}, images by {np.abs(scored - trained).max():.1e} at most"
    )
    sys.exit(distance > TOLERANCE)


if __name__ == "__main__":
    main()
