"""What an autoencoder costs and keeps: time and bytes of encoder and decoders, PSNR of held-out images with and without noise.

Held-out images are encoded, given noise as the flow's samples have it, and decoded by each decoder of the bundle.

Example: python -m benchmarks.decoding emoji.bundle out/emoji/emoji-text.npz
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from benchmarks.denoising import milliseconds, psnr

from starflow.runtime import Sampler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path, help=".npz with test_images uint8 [N, H, W(, C)]")
    parser.add_argument("--images", type=int, default=512, help="held-out images (default: 512)")
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    with np.load(arguments.data) as file:
        pixels = file["test_images"]
    pixels = (pixels[..., None] if pixels.ndim == 3 else pixels).transpose(0, 3, 1, 2)
    clean = pixels[:: max(1, len(pixels) // arguments.images)][: arguments.images].astype(np.float32) / 127.5 - 1
    with Sampler.open(arguments.bundle) as sampler:
        spec, manifest = sampler.manifest.autoencoder, sampler.bundle.autoregressive
        if spec is None:
            raise SystemExit(f"{arguments.bundle}: holds no autoencoder")
        batch, std = manifest.batch, manifest.model.noise_std
        data = sampler.encode_images(clean)
        noisy = data + std * np.random.default_rng(0).standard_normal(data.shape, np.float32)
        mebibytes = spec.decoders[0].network.weights.bytes / 2**20
        print(f"{len(clean)} held-out images, batches of {batch}, noise {std:g}; weights {mebibytes:.1f} MiB in all")
        if spec.encoder:
            taken = milliseconds(partial(sampler.encode_images, clean[:batch]), arguments.repetitions)
            print(f"encoder: {taken:.1f} ms a batch, {spec.encoder.weight_bytes / 1e6:.1f} MB of weights a pass")
        for decoder in spec.decoders:
            how: Literal["none", "decoder"] = "decoder" if decoder.noise_std else "none"
            decode = partial(sampler.to_images, denoise=how)
            taken = milliseconds(partial(decode, noisy[:batch]), arguments.repetitions)
            kept, cleaned = (psnr(decode(x).transpose(0, 3, 1, 2) / 127.5 - 1, clean) for x in (data, noisy))
            print(
                f"decoder, denoise {how}: {taken:.1f} ms a batch, {decoder.network.weight_bytes / 1e6:.1f} MB of weights a pass; "
                f"PSNR {kept:.2f} dB, of latents with noise {cleaned:.2f} dB"
            )


if __name__ == "__main__":
    main()
