"""Does a model find what it never saw less likely: bits/dim of held-out images and of other sets, by `starflow score`.

All are scored without a condition, as one would score an image of unknown origin, and with the noise of training. Needs
`python examples/digits/fetch.py` and `python examples/emoji/fetch.py`, and a bundle.

Examples:
  python -m benchmarks.out_of_distribution digits out/demo/bundle --plot docs/assets/digits-likelihood.png
  python -m benchmarks.out_of_distribution emoji out/emoji/bundle --plot docs/assets/emoji-likelihood.png
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from benchmarks.likelihood_agreement import score
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from starflow.runtime.bundle.bundle import Bundle

Pictures = Sequence[Image.Image]
DIGITS, EMOJI = Path("out/digits/digits.npz"), Path("out/emoji/emoji-text.npz")


def digit_sets(count: int) -> dict[str, Pictures]:
    """Held-out digits, what they may be mistaken for, and what they may not, 28x28 grey."""
    with np.load(DIGITS) as file:
        digits = file["test_images"][:count]
    with np.load(EMOJI) as file:
        emoji = [Image.fromarray(image).convert("L").resize((28, 28)) for image in file["test_images"][:count]]
    noise = np.random.default_rng(0).integers(0, 256, digits.shape, np.uint8)
    return {
        "held-out digits": _grey(digits),
        "upside down": _grey(digits[:, ::-1]),
        "cut and shifted": _grey(np.roll(digits, 10, axis=2)),
        "letters": [_letter(index) for index in range(count)],
        "black on white": _grey(255 - digits),
        "emoji": [Image.fromarray(255 - np.asarray(each)) for each in emoji],
        "noise": _grey(noise),
    }


def emoji_sets(count: int) -> dict[str, Pictures]:
    """Held-out emoji and other pictures, 64x64 RGB."""
    with np.load(EMOJI) as file:
        emoji = np.random.default_rng(0).permutation(file["test_images"])[:count]
    with np.load(DIGITS) as file:
        digits = [Image.fromarray(255 - image).convert("RGB").resize((64, 64)) for image in file["test_images"][:count]]
    pictures = [Image.fromarray(image) for image in emoji]
    return {
        "held-out emoji": pictures,
        "upside down": [Image.fromarray(image[::-1]) for image in emoji],
        "blurred": [each.filter(ImageFilter.GaussianBlur(2)) for each in pictures],
        "digits": digits,
        "negative": [Image.fromarray(255 - image) for image in emoji],
        "noise like a photograph's": [_natural_noise(index) for index in range(count)],
        "noise": [Image.fromarray(each) for each in np.random.default_rng(0).integers(0, 256, emoji.shape, np.uint8)],
    }


def plot(file: Path, bits: Mapping[str, NDArray[np.float64]]) -> None:
    """A histogram for each set, one above the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(len(bits), sharex=True, figsize=(8, 0.8 * len(bits) + 0.8), layout="constrained")
    edges = np.linspace(min(map(np.min, bits.values())), max(map(np.max, bits.values())), 80)
    for axes, (name, values) in zip(rows, bits.items(), strict=True):
        axes.hist(values, edges, color="tab:blue" if axes is rows[0] else "tab:orange")
        axes.axvline(np.median(next(iter(bits.values()))), color="tab:blue", linestyle=":")
        axes.set_yticks([])
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.spines[["top", "right", "left"]].set_visible(False)
    rows[-1].set_xlabel("bits/dim without a condition: more is less likely")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def _grey(images: NDArray[np.uint8]) -> Pictures:
    return [Image.fromarray(image) for image in images]


def _letter(index: int) -> Image.Image:
    """A letter of the alphabet, white on black, in a size of its own."""
    picture = Image.new("L", (28, 28))
    size = 18 + index // 26 % 5
    ImageDraw.Draw(picture).text((14, 14), chr(ord("A") + index % 26), 255, ImageFont.load_default(size), anchor="mm")
    return picture


def _natural_noise(index: int) -> Image.Image:
    """Noise of the spectrum 1/f that photographs have, in colour."""
    white = np.random.default_rng(index).standard_normal((64, 64, 3))
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)) + 1 / 64
    x = np.fft.ifft2(np.fft.fft2(white, axes=(0, 1)) / frequency[:, :, None], axes=(0, 1)).real
    return Image.fromarray((127.5 + 50 * x / x.std()).clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", choices=("digits", "emoji"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=200, help="images of each set (default: 200)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    arguments = parser.parse_args()
    sets = (digit_sets if arguments.images == "digits" else emoji_sets)(arguments.count)
    noise_std = Bundle.open(arguments.bundle).autoregressive.model.noise_std
    bits = {name: score(arguments.bundle, pictures, "--noise-std", str(noise_std)) for name, pictures in sets.items()}
    inside = next(iter(bits.values()))
    print(f"{'':<28}{'median':>8}{'5 %':>8}{'95 %':>8}{'told apart':>12}")
    for name, values in bits.items():
        low, middle, high = np.percentile(values, [5, 50, 95])
        # The area under the ROC curve: how often an image of this set has more bits than a held-out one.
        apart = "" if values is inside else f"{(values[:, None] > inside).mean():.1%}"
        print(f"{name:<28}{middle:>8.3f}{low:>8.3f}{high:>8.3f}{apart:>12}")
    if arguments.plot:
        plot(arguments.plot, bits)


if __name__ == "__main__":
    main()
