"""What denoising costs and does: time and bytes beside those of sampling, PSNR on held-out digits, and a picture.

The digits are made noisy as in training, so what was taken away is known. Needs `python examples/digits/fetch.py` and a bundle
of the digits model that holds denoisers.

Example: python -m benchmarks.denoising digits.bundle --picture denoised.png
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from benchmarks.digits_quality import DIGITS
from numpy.typing import NDArray
from PIL import Image

from starflow.runtime import Sampler
from starflow.runtime.networks.denoising import choose_denoiser
from starflow.runtime.plain.images import grid, write_png

ENLARGED = 3  # pixels of the picture for one of the model's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--images", type=int, default=1000, help="held-out digits to denoise (default: 1000)")
    parser.add_argument("--picture", type=Path, help="write a PNG: samples above, below them denoised")
    arguments = parser.parse_args()
    with np.load(DIGITS) as file:
        digits, labels = file["test_images"][: arguments.images], file["test_labels"][: arguments.images]
    clean = digits[:, None].astype(np.float32) / 127.5 - 1
    with Sampler.open(arguments.bundle) as sampler:
        manifest = sampler.bundle.autoregressive
        batch, asked = manifest.batch, np.arange(manifest.batch) % 10
        noise = sampler.noise(batch, seed=7)
        samples = sampler.generate(noise, asked, guidance=2.0)
        sampling = milliseconds(partial(sampler.generate, noise, asked, guidance=2.0), arguments.repetitions)
        steps = sum(graph.weight_bytes * manifest.decoded_tokens()[graph.block] for graph in sampler.variant.graphs)
        print(f"sampling: {sampling:.1f} ms for {batch} images, {steps / 1e6:.0f} MB of weights read")
        std = manifest.model.noise_std
        noisy = clean + std * np.random.default_rng(0).standard_normal(clean.shape, np.float32)
        print(f"held-out digits with noise of {std:g}: PSNR {psnr(noisy, clean):.1f} dB")
        rows = [samples]
        for kind in dict.fromkeys(spec.kind for spec in manifest.denoisers):
            spec = choose_denoiser(manifest, kind, sampler.variant).network
            rows.append(sampler.denoise(samples, asked, how=kind))
            taken = milliseconds(partial(sampler.denoise, samples, asked, how=kind), arguments.repetitions)
            found = psnr(sampler.denoise(noisy, labels, how=kind), clean)
            print(
                f"{kind}: {taken:.1f} ms for {batch} images, {spec.weight_bytes / 1e6:.1f} MB of weights a pass, "
                f"graph {spec.file.bytes / 1e6:.2f} MB; PSNR {found:.1f} dB"
            )
        if arguments.picture:
            sheet = grid(np.concatenate([sampler.to_images(row) for row in rows]), columns=batch)
            size = (sheet.shape[1] * ENLARGED, sheet.shape[0] * ENLARGED)
            enlarged = Image.fromarray(sheet[..., 0]).resize(size, Image.Resampling.NEAREST)
            write_png(arguments.picture, np.asarray(enlarged)[..., None])


def milliseconds(what: Callable[[], object], repetitions: int) -> float:
    """The median of some runs."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        what()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def psnr(found: NDArray, clean: NDArray) -> float:
    """Peak signal to noise ratio of numbers in [-1, 1], decibels."""
    return float(10 * np.log10(4 / np.square(found - clean).mean()))


if __name__ == "__main__":
    main()
