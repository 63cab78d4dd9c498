"""Score images: how likely a bundle's model finds them, in bits per dimension, and the noise that makes them.

8-bit values become numbers by adding uniform noise of one grey level (--seed); models trained on noisier data, as the shipped
ones are, are scored on such data: --noise-std as in training. The lower the bits, the likelier; images unlike those the
model was trained on stand out. A model of latents scores what the bundle's encoder makes of an image, in bits per latent
dimension, which has no quantisation and may be negative; --noise-std is then in units of its data.

Two passes over each flow block score a batch: no more than reading its weights twice.

Examples:
  starflow score digits.bundle seven.png --labels 7 --noise-std 0.1
  starflow score digits.bundle scans/*.png --json
  starflow score digits.bundle seven.png --labels 7 --latents z.npy
  starflow score t2i.bundle latents.npy --condition features.npy
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from starflow.runtime.commands.backend_arguments import add_backend_arguments, backend_options
from starflow.runtime.commands.condition_arguments import add_condition_arguments, given_condition, refuse_labels
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.input_files import load_array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from starflow.runtime.sampler import Sampler

LEVEL = 1 / 127.5  # width of one grey level in [-1, 1]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="folder written by `starflow export`")
    parser.add_argument(
        "images", type=Path, nargs="+", help="image files; or one .npy of data as trained on, float32 [N, C, H, W]"
    )
    add_condition_arguments(parser)
    parser.add_argument("--noise-std", type=float, metavar="S", help="add Gaussian noise in place of uniform noise")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--latents", type=Path, metavar="FILE.npy", help="write the noise z that makes the images")
    parser.add_argument("--variant", help="variant to run (default: the first one made for the backend)")
    add_backend_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Score and print."""
    import numpy as np

    from starflow.runtime.plain.atomic_write import atomic_file, check_file
    from starflow.runtime.plain.bits_per_dim import bits_per_dim
    from starflow.runtime.plain.progress import progress_bar
    from starflow.runtime.sampler import Sampler

    if arguments.latents:
        check_file(arguments.latents)
    if arguments.seed < 0 or (arguments.noise_std is not None and not arguments.noise_std >= 0):
        raise UsageError("--seed and --noise-std take numbers of 0 or more")
    options = backend_options(arguments)
    with Sampler.open(arguments.bundle, variant=arguments.variant, plan="sequential", **options) as sampler:
        refuse_labels(arguments, sampler.manifest)
        x, level = _data(arguments, sampler)
        condition, _ = given_condition(arguments)
        with progress_bar("scoring", enabled=not arguments.json) as bar:
            found = sampler.invert(x, condition, progress=bar)
        bits = bits_per_dim(found.log_likelihood, x[0].size, span=256 * level)
        back = sampler.generate(found.noise, condition)
        errors = np.abs(back - x).reshape(len(x), -1).max(axis=1)
    if arguments.latents:
        with atomic_file(arguments.latents) as temporary, temporary.open("wb") as file:
            np.save(file, found.noise)
    names = [str(path) for path in arguments.images]
    names = names if len(names) == len(x) else [f"{names[0]}[{index}]" for index in range(len(x))]
    rows = [
        {"image": name, "bits_per_dim": float(b), "log_likelihood": float(nats), "round_trip_error": float(error)}
        for name, b, nats, error in zip(names, bits, found.log_likelihood, errors, strict=True)
    ]
    if arguments.json:
        print(json.dumps({"bits_per_dim": float(bits.mean()), "images": rows}))
        return 0
    width = max(map(len, names))
    print(f"{'':<{width}}  bits/dim  round trip")
    for row in rows:
        print(f"{row['image']:<{width}}  {row['bits_per_dim']:>8.3f}  {row['round_trip_error']:>10.1e}")
    if len(rows) > 1:
        print(f"{'mean':<{width}}  {bits.mean():>8.3f}")
    return 0


def _data(arguments: argparse.Namespace, sampler: "Sampler") -> "tuple[NDArray[np.float32], float]":
    """Data as the model was trained on, with noise; and how wide one grey level is in it (1: not quantised)."""
    import numpy as np

    from starflow.runtime.plain.images import read_images

    draw = np.random.default_rng(arguments.seed)
    if arguments.images[0].suffix == ".npy":
        if len(arguments.images) > 1:
            raise UsageError(f"{arguments.images[1]}: give one .npy file, or image files")
        x, level = np.asarray(load_array(arguments.images[0]), np.float32), 1.0
        noise = (arguments.noise_std or 0.0) * draw.standard_normal(x.shape, np.float32)
        return x + noise, level
    image, (_, height, width) = sampler.manifest.image, sampler.pixel_shape
    pixels = read_images(arguments.images, image.mode, height, width).transpose(0, 3, 1, 2)
    x = pixels.astype(np.float32) / 127.5 - 1
    if sampler.manifest.autoencoder:  # noise belongs to the latents, which are not quantised
        x = sampler.encode_images(x)
        return x + (arguments.noise_std or 0.0) * draw.standard_normal(x.shape, np.float32), 1.0
    if arguments.noise_std:
        x = x + arguments.noise_std * draw.standard_normal(x.shape, np.float32)
    else:
        x = x + LEVEL * (draw.random(x.shape, np.float32) - 0.5)
    return (x - image.shift) * image.scale, LEVEL * image.scale
