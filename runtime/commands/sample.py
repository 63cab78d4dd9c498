"""Sample images from a bundle.

Writes one PNG with all images (by default samples.png in the current folder), single files (--out FOLDER/), or the latents
themselves (--latents FILE.npy). The same seed gives the same images, however they are split into batches. A large set is
written in shards (--shards), see `starflow generate`.

Examples:
  starflow sample digits.bundle --labels 0-9 --count 40 --guidance 2 --seed 7 --out digits.png
  starflow sample t2i.bundle --captions "a red apple" "two cats" --guidance 3 --out fruit.png
  starflow sample t2i.bundle --condition features.npy --null-condition null.npy --guidance 3 --out images/
  starflow sample continuous.bundle --labels 0-9 --solver midpoint --steps 8
  starflow sample digits.bundle --labels 0-9 --count 100000 --shards 100 --shard 7 --out digits/
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from starflow.runtime.commands.backend_arguments import (
    add_backend_arguments,
    add_plan_arguments,
    add_variant_argument,
    backend_options,
    chosen_plan,
)
from starflow.runtime.commands.bundle_argument import add_bundle_argument
from starflow.runtime.commands.condition_arguments import refuse_labels
from starflow.runtime.commands.sampling_arguments import add_sampling_arguments, given_guidance, given_images
from starflow.runtime.commands.shape_argument import parse_shape
from starflow.runtime.commands.shard_arguments import add_shard_arguments, refuse_shard_arguments, run_shards
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.input_files import load_array

if TYPE_CHECKING:
    from starflow.runtime.bundle.network_spec import StudentSpec
    from starflow.runtime.sampler import Sampler


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_bundle_argument(parser)
    add_sampling_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        default=Path("samples.png"),
        help="PNG file for all images, or a folder for single ones or for shards (default: samples.png in the current folder)",
    )
    output.add_argument(
        "--columns", type=int, metavar="N", help="images in a row of the PNG (default: nearly a square)"
    )
    output.add_argument(
        "--latents", type=Path, metavar="FILE.npy", help="also write the data, float32 [N, C, H, W] (points: [N, D])"
    )
    output.add_argument("--json", action="store_true", help="print a summary as JSON")
    add_shard_arguments(parser.add_argument_group("a large set, as `starflow generate` makes it"))
    running = parser.add_argument_group("how it runs")
    add_variant_argument(running)
    add_backend_arguments(running, batch="the smallest that holds the images, part by part")
    add_plan_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Sample and write; 0 if everything was written."""
    if arguments.shards is not None:
        _check_shard_output(arguments)
        return run_shards(arguments)
    refuse_shard_arguments(arguments)
    import numpy as np

    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.bundle.own_files import refuse_own_files
    from starflow.runtime.networks.caption_encoder import encode_once
    from starflow.runtime.networks.denoising import choose_denoising
    from starflow.runtime.plain.atomic_write import check_output, write_array
    from starflow.runtime.plain.images import grid, write_png
    from starflow.runtime.plain.memory import check_images
    from starflow.runtime.plain.progress import progress_bar
    from starflow.runtime.sampler import Sampler

    single_files = arguments.out.suffix.lower() != ".png"
    if single_files and arguments.out.suffix:
        raise UsageError(f"--out {arguments.out}: give a .png file, or a folder for single files")
    guidance = given_guidance(arguments)
    condition, given, count = given_images(arguments)
    if arguments.columns is not None and arguments.columns < 1:
        raise UsageError(f"--columns {arguments.columns}: give a number of at least 1")
    opened = Bundle.open(arguments.bundle)
    bundle = opened.at_shape(parse_shape(arguments.shape))
    conditioning = bundle.manifest.conditioning
    check_images(count, math.prod(bundle.manifest.model.data_shape), conditioning.tokens * conditioning.width)
    if given > 1 and count != given:
        condition = np.asarray(condition)[np.arange(count) % given]
    refuse_labels(arguments, bundle.manifest)
    kind = bundle.manifest.output
    pictures: list[Path] = []
    if kind == "images":
        names = [arguments.out / f"{index:05d}.png" for index in range(count)]
        pictures = names if single_files else [arguments.out]
    elif not arguments.latents:
        raise UsageError(f"this bundle makes {kind}, not images; name a .npy file with --latents")
    files = [*([arguments.latents] if arguments.latents else []), *pictures]
    refuse_own_files(bundle, *files)
    for path in files:
        check_output(path)
    null = None if arguments.null_condition is None else load_array(arguments.null_condition)
    if arguments.captions or arguments.captions_file:
        # Before the flow is loaded: the two need not lie in memory together.
        condition, empty = encode_once(
            bundle,
            condition,
            backend=arguments.backend,
            variant=arguments.variant,
            provider=arguments.provider,
            threads=arguments.threads,
        )
        null = empty if null is None else null
    options = {"plan": chosen_plan(arguments), **backend_options(arguments)}
    with Sampler.open(opened, variant=arguments.variant, **options) as sampler:
        manifest = sampler.manifest
        denoise = choose_denoising(manifest, arguments.denoise)
        how = {"guidance": guidance, "denoise": denoise, "denoising_rate": arguments.denoising_rate}
        noise = sampler.noise(count, arguments.seed, arguments.temperature)
        start = time.perf_counter()
        with progress_bar(f"sampling {count} {kind}", enabled=not arguments.json) as bar:
            x = sampler.generate(noise, condition, null, progress=bar, **how)
        seconds = time.perf_counter() - start

        if arguments.latents:
            write_array(arguments.latents, x)
        if pictures:
            images = sampler.to_images(x, denoise=denoise)
            sheets = images if single_files else [grid(images, arguments.columns)]
            for path, image in zip(pictures, sheets, strict=True):
                write_png(path, image)
        variant, backend, decoding = sampler.variant.name, sampler.backend.name, sampler.decoding
        students = _students(sampler)
    if arguments.json:
        outcome = {
            "images": count,
            "seconds": seconds,
            "images_per_second": count / seconds,
            "variant": variant,
            "backend": backend,
            "decoding": decoding,
            "students": {spec.block: spec.figures and spec.figures.model_dump() for spec in students},
            "denoise": denoise,
            "files": [str(path) for path in files],
        }
        print(json.dumps(outcome))
    else:
        where = ", ".join(map(str, files)) if len(files) <= 2 else f"{arguments.out}/ ({len(files)} files)"
        print(
            f"{where}: {count} {kind if count > 1 else kind[:-1]} in {seconds:.2f} s, {count / seconds:.2f} {kind}/s, "
            f"{variant} on {backend}, {decoding}"
        )
        if students:
            print("distance of the students from the exact sampler, as measured:")
        for spec in students:
            print(f"  flow block {spec.block}: {spec.figures or 'not measured'}")
    return 0


def _students(sampler: "Sampler") -> "list[StudentSpec]":
    """The students that made a part of the samples."""
    from starflow.runtime.autoregressive.students import students_in

    return students_in(sampler.manifest, sampler.plan)


def _check_shard_output(arguments: argparse.Namespace) -> None:
    """UsageError for an output that shards do not have."""
    for name in ("columns", "latents"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name}: is not for a set in shards; leave it out")
    if arguments.out.suffix.lower() == ".png":
        raise UsageError(f"--out {arguments.out}: shards go into a folder; name one")
