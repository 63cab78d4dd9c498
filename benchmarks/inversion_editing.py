"""Editing real images by their noise: find the noise that makes an image under its own condition, and sample it under another one.

Held-out digits become other digits, and emoji get other captions. Besides a picture, this measures what an edit keeps: of 1,000
digits the stroke width and the slant, and of 200 emoji the likeness to the original, each beside samples from fresh noise. Needs
`python examples/digits/fetch.py` or `python examples/emoji/fetch.py`, and a bundle of the model.

Examples:
  python -m benchmarks.inversion_editing digits digits.bundle --picture digits-edited.png
  python -m benchmarks.inversion_editing emoji emoji.bundle --picture emoji-edited.png
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmarks.digit_classifier import classify, load_classifier
from benchmarks.digits_quality import DIGITS
from benchmarks.emoji_gallery import ARCHIVE
from numpy.typing import NDArray
from PIL import Image

from starflow.runtime import Sampler
from starflow.runtime.networks.denoising import Denoise
from starflow.runtime.plain.images import grid, write_png

EMOJI_EDITS = (  # an emoji of the data, and the captions it is given instead
    ("red apple, noto style", ("green apple, noto style", "red apple, fluent style", "pear, noto style")),
    (
        "grinning face, twemoji style",
        ("grinning face, noto style", "crying face, twemoji style", "angry face, twemoji style"),
    ),
    ("red heart, twemoji style", ("blue heart, twemoji style", "red heart, noto style", "broken heart, twemoji style")),
    ("rocket, noto style", ("rocket, twemoji style", "sailboat, noto style", "octopus, noto style")),
    (
        "waving hand, noto style",  # held out
        ("waving hand: dark skin tone, noto style", "waving hand, twemoji style", "raised fist, noto style"),
    ),
)
ENLARGED = 2  # pixels of the picture for one of a digit's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("digits", "emoji"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--picture", type=Path, help="write a PNG of some edits")
    arguments = parser.parse_args()
    with Sampler.open(arguments.bundle) as sampler:
        if arguments.data == "digits":
            edit_digits(sampler, arguments.picture)
        else:
            edit_emoji(sampler, arguments.picture)


def edit_digits(sampler: Sampler, picture: Path | None) -> None:
    with np.load(DIGITS) as file:
        images, labels = file["test_images"], file["test_labels"]
    x = sampler.encode_images(as_pixels(images[..., None]))
    noise = sampler.invert(x, labels).noise
    print(f"round trip: at most {np.abs(sampler.generate(noise, labels) - x).max():.1e} off, in units of [-1, 1]")

    asked = (labels + np.random.default_rng(0).integers(1, 10, len(labels))) % 10
    network, fresh = load_classifier(), sampler.noise(len(x), seed=1)
    print(f"{'guidance':>8} {'noise':>9} {'read as asked':>14} {'stroke width':>13} {'slant':>6}")
    for guidance in (0.0, 1.0, 2.0):
        for name, start in (("inverted", noise), ("fresh", fresh)):
            edited = sampler.to_images(sampler.generate(start, asked, guidance=guidance))[..., 0]
            read = (classify(network, edited) == asked).mean()
            width, slope = correlation(stroke_width, images, edited), correlation(slant, images, edited)
            print(f"{guidance:>8g} {name:>9} {read:>14.1%} {width:>13.2f} {slope:>6.2f}")

    if picture:
        some = np.array([np.flatnonzero(labels == digit)[1] for digit in range(10)])
        rows = [images[some, ..., None]]
        rows += [
            sampler.to_images(sampler.generate(noise[some], np.full(10, digit), guidance=1.0)) for digit in range(10)
        ]
        sheet = Image.fromarray(grid(np.concatenate(rows), columns=10)[..., 0])
        enlarged = sheet.resize((sheet.width * ENLARGED, sheet.height * ENLARGED), Image.Resampling.NEAREST)
        write_png(picture, np.asarray(enlarged)[..., None])


def edit_emoji(sampler: Sampler, picture: Path | None) -> None:
    with np.load(ARCHIVE) as file:
        sides = {
            "training": (file["images"], file["captions"]),
            "held-out": (file["test_images"], file["test_captions"]),
        }
    print(f"{'emoji':>8} {'noise':>9} {'distance to the original':>25}")
    for side, (images, captions) in sides.items():
        noto = np.flatnonzero([caption.endswith(", noto style") for caption in captions])
        some = np.random.default_rng(0).permutation(noto)[:100]
        own = [str(caption) for caption in captions[some]]
        other = [caption.replace("noto style", "twemoji style") for caption in own]
        x = sampler.encode_images(as_pixels(images[some]))
        noise = sampler.invert(x, own).noise
        # What was encoded is free of the training noise, so the plain decoder makes its edits; samples have that noise.
        starts: tuple[tuple[str, NDArray, Denoise], ...] = (
            ("inverted", noise, "none"),
            ("fresh", sampler.noise(len(x), seed=1), "auto"),
        )
        for name, start, denoise in starts:
            edited = sampler.to_images(sampler.generate(start, other), denoise=denoise)
            away = np.sqrt(np.square(edited.astype(np.float64) - images[some]).mean(axis=(1, 2, 3))).mean()
            print(f"{side:>8} {name:>9} {away:>25.1f}")

    if picture:
        everything = {
            str(c): image for images, captions in sides.values() for c, image in zip(captions, images, strict=True)
        }
        own = [caption for caption, _ in EMOJI_EDITS]
        originals = np.stack([everything[caption] for caption in own])
        noise = sampler.invert(sampler.encode_images(as_pixels(originals)), own).noise
        wanted = [own, *(list(column) for column in zip(*(given for _, given in EMOJI_EDITS), strict=True))]
        edits = [sampler.to_images(sampler.generate(noise, captions), denoise="none") for captions in wanted]
        fresh = sampler.generate(sampler.noise(len(own), seed=1), wanted[1])
        columns = [originals, *edits, sampler.to_images(fresh)]
        write_png(picture, grid(np.stack(columns, axis=1).reshape(-1, *originals.shape[1:]), columns=len(columns)))


def as_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[N, H, W, C] uint8 -> [N, C, H, W] float32 in [-1, 1]."""
    return images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1


def correlation(
    measure: Callable[[NDArray[np.float64]], float], originals: NDArray[np.uint8], edited: NDArray[np.uint8]
) -> float:
    """Of a figure of each digit [N, 28, 28] with the same figure of its edit."""
    before, after = ([measure(image / 255.0) for image in images] for images in (originals, edited))
    return float(np.corrcoef(before, after)[0, 1])


def stroke_width(image: NDArray[np.float64]) -> float:
    """Twice the ink over the length of its outline: the width of a stroke much longer than it is wide, in pixels."""
    outline = np.hypot(*np.gradient(image)).sum()
    return float(2 * image.sum() / outline)


def slant(image: NDArray[np.float64]) -> float:
    """Pixels to the right for one pixel up, of the line through the ink's centre that fits best."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    ink = np.where(image > 0.5, image, 0)  # what stays of the training noise is no ink
    y, x = y - np.average(y, weights=ink), x - np.average(x, weights=ink)
    return float(-(ink * x * y).sum() / (ink * y * y).sum())


if __name__ == "__main__":
    main()
