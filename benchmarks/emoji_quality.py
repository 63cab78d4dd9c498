"""How good is an emoji model: do its pictures show what the caption asks for, and how far are they from real ones.

The judge is a network trained on photographs (EfficientNet-Lite0). A picture agrees with its caption's group (of 10) or subgroup (of
99) if the nearest of all real emoji, by the cosine of its features, is of it. The Fréchet distance is one of the same
features, between pictures of held-out captions and the held-out emoji; it is not FID, whose features are another network's.
Captions name emoji without skin tones, in their natural proportions; those of the training split and held-out ones stand apart.

Real emoji, each left out of the gallery, bound what can be reached, and random ones tell what is worth nothing. Needs
`python examples/emoji/fetch.py` and either a bundle or an .npz of `images` uint8 [N, 64, 64, 3] with their `captions`.

Examples:
  python -m benchmarks.emoji_quality                                   # the bounds
  python -m benchmarks.emoji_quality out/emoji/bundle --guidance 0 1 2 4 --plot docs/assets/emoji-quality.png
  python -m benchmarks.emoji_quality out/emoji/bundle --validation out/emoji/emoji-varied.npz
  python -m benchmarks.emoji_quality samples.npz
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from benchmarks.emoji_gallery import Agreement, Gallery, load_gallery
from benchmarks.image_features import image_features
from numpy.typing import NDArray

from starflow.calibration.frechet import frechet_distance
from starflow.runtime import Sampler
from starflow.runtime.plain.bits_per_dim import bits_per_dim

SPLITS = ("training", "validation", "held-out")


@dataclass(frozen=True)
class Row:
    """A line of the table: pictures of one kind for captions of one split."""

    what: str
    captions: str
    count: int
    agreement: Agreement
    distance: float | None = None


class Judge:
    """Judges pictures made for captions of either split."""

    def __init__(self, gallery: Gallery, count: int) -> None:
        self.gallery = gallery
        self.asked = {split: gallery.draw(count, split) for split in SPLITS if (gallery.splits == split).any()}
        self._held_out = gallery.features[gallery.draw(len(gallery.captions), "held-out")]

    def bounds(self) -> list[Row]:
        """What random and what real emoji reach."""
        rows = []
        for split, asked in self.asked.items():
            real = frechet_distance(self.gallery.features[asked], self._held_out) if split == "training" else None
            rows += [
                Row("random emoji", split, len(asked), self.gallery.chance(asked)),
                Row(
                    "real, own picture left out",
                    split,
                    len(asked),
                    self.gallery.ceiling(asked, other_emoji=False),
                    real,
                ),
                Row("real, other emoji only", split, len(asked), self.gallery.ceiling(asked, other_emoji=True)),
            ]
        return rows

    def pictures(self, what: str, images: NDArray[np.uint8], asked: NDArray[np.int64]) -> list[Row]:
        """Judge pictures [n, 64, 64, 3] made for the captions at `asked` [n], each split on its own."""
        features, rows = image_features(images), []
        for split in SPLITS:
            of_split = self.gallery.splits[asked] == split
            if of_split.any():
                part = features[of_split]
                agreement = self.gallery.agreement(part, asked[of_split])
                rows.append(Row(what, split, len(part), agreement, frechet_distance(part, self._held_out)))
        return rows


def plot(file: Path, rows: Mapping[float, list[Row]], bounds: list[Row]) -> None:
    """Agreement and distance against guidance, with what real emoji reach as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    weights = list(rows)
    for split, style in zip(("training", "held-out"), ("-", "--"), strict=True):
        found = [next(row for row in rows[weight] if row.captions == split) for weight in weights]
        for level, colour in (("group", "tab:blue"), ("subgroup", "tab:orange")):
            values = [getattr(row.agreement, level) for row in found]
            left.plot(weights, values, style, marker="o", color=colour, label=f"{level}, {split} captions")
        right.plot(
            weights, [row.distance for row in found], style, marker="o", color="tab:green", label=f"{split} captions"
        )
    real = {row.captions: row for row in bounds if row.what.startswith("real, own")}
    for level, colour in (("group", "tab:blue"), ("subgroup", "tab:orange")):
        value = getattr(real["held-out"].agreement, level)
        left.axhline(value, color=colour, linestyle=":", label=f"{level}, real held-out emoji")
    right.axhline(real["training"].distance, color="grey", linestyle=":", label="real training emoji")
    left.set(xlabel="guidance", ylabel="nearest real emoji agrees", ylim=(0, 1))
    right.set(xlabel="guidance", ylabel="Fréchet distance to held-out emoji", ylim=(0, None))
    for axes in (left, right):
        axes.legend(
            fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0)
        )  # above: curves lie anywhere below
        axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


@dataclass(frozen=True)
class Made:
    """What a bundle made of the captions, and of real emoji.

    Attributes:
        sampled: Pictures [n, 64, 64, 3] by guidance, all from the same noise.
        decoded: Real emoji through encoder, noise of training and decoder.
        bits_per_dim: Of every real emoji given its caption, [n], with that noise.
    """

    sampled: dict[float, NDArray[np.uint8]]
    decoded: NDArray[np.uint8]
    bits_per_dim: NDArray[np.float64]


def make(
    bundle: Path, variant: str | None, plan: str, gallery: Gallery, asked: NDArray[np.int64], guidance: list[float]
) -> Made:
    """Run a bundle for the emoji at `asked` [n]."""
    captions = gallery.captions[asked].tolist()
    pixels = gallery.images[asked].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    with Sampler.open(bundle, variant=variant, plan=plan) as sampler:
        x = sampler.encode_images(pixels)
        noise_std = sampler.bundle.autoregressive.model.noise_std
        x += noise_std * np.random.default_rng(0).standard_normal(x.shape, np.float32)
        # Latents have no grey levels: a span of 256 makes a level 1.
        bits = bits_per_dim(sampler.invert(x, captions).log_likelihood.astype(np.float64), x[0].size, span=256)
        sampled = {weight: sampler.sample(captions, guidance=weight, seed=1) for weight in guidance}
        return Made(sampled, sampler.to_images(x), bits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "pictures", type=Path, nargs="?", help="a bundle of latents, or an .npz of pictures made elsewhere"
    )
    parser.add_argument("--guidance", type=float, nargs="+", default=[0.0, 1.0, 2.0, 4.0])
    parser.add_argument("--count", type=int, default=500, help="captions of each split (default: 500)")
    parser.add_argument("--variant", help="variant that samples (default: the cpu one)")
    parser.add_argument("--plan", default="auto", help="decode plan, such as student (default: auto)")
    parser.add_argument(
        "--validation",
        type=Path,
        metavar="FILE.npz",
        help="judge the validation captions of this archive too, apart from the training ones",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the figures of a bundle over guidance")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    gallery = load_gallery(arguments.validation)
    judge = Judge(gallery, arguments.count)
    bounds = judge.bounds()
    found: list[Row] = []
    bits: dict[str, float] = {}
    if arguments.pictures and arguments.pictures.suffix == ".npz":
        with np.load(arguments.pictures) as file:
            found = judge.pictures(arguments.pictures.name, file["images"], gallery.find(file["captions"]))
    elif arguments.pictures:
        asked = np.concatenate(list(judge.asked.values()))
        made = make(arguments.pictures, arguments.variant, arguments.plan, gallery, asked, arguments.guidance)
        rows = {
            weight: judge.pictures(f"guidance {weight:g}", images, asked) for weight, images in made.sampled.items()
        }
        found = judge.pictures("real, decoded from latents", made.decoded, asked)
        found += [row for each in rows.values() for row in each]
        bits = {split: float(made.bits_per_dim[gallery.splits[asked] == split].mean()) for split in judge.asked}
        if arguments.plot:
            plot(arguments.plot, rows, bounds)
    if arguments.json:
        print(json.dumps({"rows": [asdict(row) for row in (*bounds, *found)], "bits_per_dim": bits}, indent=1))
        return
    print(f"{'pictures':<28}{'captions':<10}{'count':>6}{'group':>8}{'subgroup':>10}{'distance':>10}")
    for row in (*bounds, *found):
        distance = "" if row.distance is None else f"{row.distance:.2f}"
        print(
            f"{row.what:<28}{row.captions:<10}{row.count:>6}{row.agreement.group:>8.1%}{row.agreement.subgroup:>10.1%}"
            f"{distance:>10}"
        )
    for split, value in bits.items():
        print(
            f"bits per latent dimension of the {split} emoji given their captions, with the noise of training: {value:.4f}"
        )


if __name__ == "__main__":
    main()
