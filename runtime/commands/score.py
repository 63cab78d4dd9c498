"""Score images: how likely a bundle's model finds them, in bits per dimension, and the noise that makes them.

A model is scored on data such as it was trained on: Gaussian noise of the training's standard deviation is added, unless
--noise-std says otherwise; 8-bit images of a model without such noise get uniform noise of one grey level. The lower the bits,
the likelier; images unlike those the model was trained on stand out. A model of latents scores what the bundle's encoder makes
of an image, in bits per latent dimension, which has no quantisation and may be negative.

Two passes over each flow block score a batch: no more than reading its weights twice.

Examples:
  starflow score digits.bundle seven.png --labels 7
  starflow score digits.bundle scans/*.png --json
  starflow score digits.bundle seven.png --labels 7 --noise-std 0 --latents z.npy
  starflow score t2i.bundle latents.npy --condition features.npy
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from starflow.runtime.commands.backend_arguments import add_backend_arguments, add_variant_argument, backend_options
from starflow.runtime.commands.bundle_argument import add_bundle_argument
from starflow.runtime.commands.condition_arguments import add_condition_arguments, given_condition, refuse_labels
from starflow.runtime.plain.bits_per_dim import LEVEL, bits_per_dim
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.input_files import load_array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from starflow.runtime.sampler import Sampler


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_bundle_argument(parser)
    parser.add_argument(
        "images", type=Path, nargs="+", help="image files; or one .npy of data as trained on, float32 [N, C, H, W]"
    )
    what = parser.add_argument_group("what to score")
    add_condition_arguments(what)
    what.add_argument(
        "--noise-std",
        type=float,
        metavar="S",
        help="standard deviation of the Gaussian noise that is added to the data; 0 adds none (8-bit images: uniform noise of "
        "one grey level) (default: as in training)",
    )
    what.add_argument("--seed", type=int, default=0, help="random seed of the noise that is added (default: 0)")
    output = parser.add_argument_group("output")
    output.add_argument("--latents", type=Path, metavar="FILE.npy", help="write the noise z that makes the images")
    output.add_argument("--json", action="store_true", help="print all figures as JSON")
    running = parser.add_argument_group("how it runs")
    add_variant_argument(running)
    add_backend_arguments(running, batch="the smallest that holds the images, part by part")


def run(arguments: argparse.Namespace) -> int:
    """Score and print."""
    import numpy as np

    from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
    from starflow.runtime.bundle.own_files import refuse_own_files
    from starflow.runtime.plain.atomic_write import check_output, write_array
    from starflow.runtime.plain.progress import progress_bar
    from starflow.runtime.sampler import Sampler

    if arguments.latents:
        check_output(arguments.latents)
    if arguments.seed < 0 or (arguments.noise_std is not None and not arguments.noise_std >= 0):
        raise UsageError("--seed and --noise-std take numbers of 0 or more")
    options = backend_options(arguments)
    with Sampler.open(arguments.bundle, variant=arguments.variant, **options) as sampler:
        refuse_own_files(sampler.bundle, arguments.latents)
        manifest, noise_std = sampler.manifest, arguments.noise_std
        refuse_labels(arguments, manifest)
        if noise_std is None:
            noise_std = manifest.model.noise_std if isinstance(manifest, AutoregressiveManifest) else 0.0
        x, level = _data(arguments, sampler, noise_std)
        condition, _ = given_condition(arguments)
        with progress_bar("scoring", enabled=not arguments.json) as bar:
            found = sampler.invert(x, condition, progress=bar)
        bits = bits_per_dim(found.log_likelihood, x[0].size, span=256 * level)
        sampler.plan = "sequential"
        back = sampler.generate(found.noise, condition)
        errors = np.abs(back - x).reshape(len(x), -1).max(axis=1)
    if arguments.latents:
        write_array(arguments.latents, found.noise)
    names = [str(path) for path in arguments.images]
    names = names if len(names) == len(x) else [f"{names[0]}[{index}]" for index in range(len(x))]
    rows = [
        {"image": name, "bits_per_dim": float(b), "log_likelihood": float(nats), "round_trip_error": float(error)}
        for name, b, nats, error in zip(names, bits, found.log_likelihood, errors, strict=True)
    ]
    if arguments.json:
        print(json.dumps({"bits_per_dim": float(bits.mean()), "noise_std": noise_std, "images": rows}))
        return 0
    width = max(map(len, names))
    print(f"{'':<{width}}  bits/dim  round trip")
    for row in rows:
        print(f"{row['image']:<{width}}  {row['bits_per_dim']:>8.3f}  {row['round_trip_error']:>10.1e}")
    if len(rows) > 1:
        print(f"{'mean':<{width}}  {bits.mean():>8.3f}")
    source = "as in training" if arguments.noise_std is None else "as given"
    print(f"noise added to the data: standard deviation {noise_std:g}, {source}")
    return 0


def _data(arguments: argparse.Namespace, sampler: "Sampler", noise_std: float) -> "tuple[NDArray[np.float32], float]":
    """Data as the model was trained on, with noise; and how wide one grey level is in it (1: not quantised)."""
    import numpy as np

    from starflow.runtime.plain.images import read_images

    draw = np.random.default_rng(arguments.seed)

    def noisy(x: "NDArray[np.float32]") -> "NDArray[np.float32]":
        return x + np.float32(noise_std) * draw.standard_normal(x.shape, np.float32)

    if arguments.images[0].suffix == ".npy":
        if len(arguments.images) > 1:
            raise UsageError(f"{arguments.images[1]}: give one .npy file, or image files")
        with np.errstate(over="ignore"):  # the sampler refuses what is infinite then
            return noisy(np.asarray(load_array(arguments.images[0]), np.float32)), 1.0
    image, (_, height, width) = sampler.manifest.image, sampler.pixel_shape
    pixels = read_images(arguments.images, "L" if image.mode == "L" else "RGB", height, width).transpose(0, 3, 1, 2)
    x = pixels.astype(np.float32) / 127.5 - 1
    if sampler.manifest.autoencoder:  # noise belongs to the latents, which are not quantised
        return noisy(sampler.encode_images(x)), 1.0
    x = noisy(x) if noise_std else x + np.float32(LEVEL) * (draw.random(x.shape, np.float32) - 0.5)
    return (x - image.shift) * image.scale, LEVEL * image.scale
