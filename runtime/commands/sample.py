"""Sample images from a bundle.

Writes a grid (one PNG), single files (--out FOLDER/), or the latents themselves (--latents FILE.npy). The same seed gives
the same images, however they are split into batches.

Examples:
  starflow sample digits.bundle --labels 0-9 --count 40 --guidance 2 --seed 7 --out digits.png
  starflow sample t2i.bundle --captions "a red apple" "two cats" --guidance 3 --out fruit.png
  starflow sample t2i.bundle --condition features.npy --null-condition null.npy --guidance 3 --out images/
  starflow sample continuous.bundle --labels 0-9 --solver midpoint --steps 8
"""

import argparse
import json
import time
from pathlib import Path

from starflow.runtime.commands.backend_arguments import (
    add_backend_arguments,
    add_integration_arguments,
    add_plan_argument,
    backend_options,
    chosen_plan,
)
from starflow.runtime.commands.condition_arguments import add_condition_arguments, given_condition, refuse_labels
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.input_files import load_array


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="folder written by `starflow export`")
    add_condition_arguments(parser)
    parser.add_argument("--null-condition", type=Path, metavar="FILE.npy", help="null condition tokens [tokens, width]")
    parser.add_argument("--count", type=int, help="number of images (default: one for each label or condition)")
    parser.add_argument("--guidance", type=float, default=0.0, help="classifier-free guidance weight >= 0 (default: 0)")
    parser.add_argument(
        "--denoise",
        metavar="HOW",
        default="auto",
        help="take out the noise that was on the training data: none, score, learned, or decoder; a bundle says which of them "
        "it has (default: auto: its decoder for noisy latents, else none)",
    )
    parser.add_argument(
        "--denoising-rate",
        type=float,
        metavar="R",
        default=1.0,
        help="part of the way score and learned go (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="image i depends on the seed and i only (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="PNG grid, or a folder/ for single files")
    parser.add_argument("--columns", type=int, help="images in a row of the grid (default: near a square)")
    parser.add_argument(
        "--latents", type=Path, metavar="FILE.npy", help="write the data as well, float32 [N, C, H, W] (points: [N, D])"
    )
    parser.add_argument("--variant", help="variant to run (default: the first one made for the backend)")
    add_backend_arguments(parser)
    add_plan_argument(parser)
    add_integration_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Sample and write; 0 when everything was written."""
    import numpy as np

    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.networks.caption_encoder import encode_once
    from starflow.runtime.networks.denoising import choose_denoising
    from starflow.runtime.plain.atomic_write import atomic_file, check_file
    from starflow.runtime.plain.images import grid, write_png
    from starflow.runtime.plain.progress import progress_bar
    from starflow.runtime.sampler import Sampler

    if arguments.count is not None and arguments.count < 1:
        raise UsageError(f"--count {arguments.count}: give a number of at least 1")
    single_files = arguments.out.suffix.lower() != ".png"
    if single_files and arguments.out.suffix:
        raise UsageError(f"--out {arguments.out}: give a .png file, or a folder for single files")
    condition, given = given_condition(arguments)
    count = arguments.count or given or 1
    if given > 1 and count != given:
        condition = np.asarray(condition)[np.arange(count) % given]
    null = None if arguments.null_condition is None else load_array(arguments.null_condition)
    if arguments.captions or arguments.captions_file:
        # Before the flow is loaded: the two need not lie in memory together.
        bundle = Bundle.open(arguments.bundle)
        condition, empty = encode_once(bundle, condition, provider=arguments.provider, threads=arguments.threads)
        null = empty if null is None else null
    options = {"plan": chosen_plan(arguments), **backend_options(arguments)}
    with Sampler.open(arguments.bundle, variant=arguments.variant, **options) as sampler:
        manifest = sampler.manifest
        refuse_labels(arguments, manifest)
        kind = manifest.output
        pictures: list[Path] = []
        if kind == "images":
            names = [arguments.out / f"{index:05d}.png" for index in range(count)]
            pictures = names if single_files else [arguments.out]
        elif not arguments.latents:
            raise UsageError(f"this bundle makes {kind}, not images; name a .npy file with --latents")
        files = [*([arguments.latents] if arguments.latents else []), *pictures]
        for path in files:
            check_file(path)

        denoising = {
            "denoise": choose_denoising(manifest, arguments.denoise),
            "denoising_rate": arguments.denoising_rate,
        }
        noise = sampler.noise(count, arguments.seed)
        start = time.perf_counter()
        with progress_bar(f"sampling {count} {kind}", enabled=not arguments.json) as bar:
            x = sampler.generate(noise, condition, null, guidance=arguments.guidance, progress=bar, **denoising)
        seconds = time.perf_counter() - start

        if arguments.latents:
            with atomic_file(arguments.latents) as temporary, temporary.open("wb") as file:
                np.save(file, x)
        if pictures:
            images = sampler.to_images(x, denoise=denoising["denoise"])
            sheets = images if single_files else [grid(images, arguments.columns)]
            for path, image in zip(pictures, sheets, strict=True):
                write_png(path, image)
        variant, backend = sampler.variant.name, sampler.backend.name
        decoding = sampler.decoding
    if arguments.json:
        outcome = {
            "images": count,
            "seconds": seconds,
            "images_per_second": count / seconds,
            "variant": variant,
            "backend": backend,
            "decoding": decoding,
            "denoise": denoising["denoise"],
            "files": [str(path) for path in files],
        }
        print(json.dumps(outcome))
    else:
        where = ", ".join(map(str, files)) if len(files) <= 2 else f"{arguments.out}/ ({len(files)} files)"
        print(
            f"{where}: {count} {kind} in {seconds:.2f} s, {count / seconds:.2f} {kind}/s, "
            f"{variant} on {backend}, {decoding}"
        )
    return 0
