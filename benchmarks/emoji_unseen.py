"""What emoji models draw for captions that nobody draws, and for held-out ones, above the most similar training emoji.

Each bundle has two rows: its pictures, and below them the emoji of the training split whose features (see
`benchmarks.image_features`) are nearest, so that a picture that was learnt by heart shows. Needs
`python examples/emoji/fetch.py` and bundles of models of emoji.

Example: python -m benchmarks.emoji_unseen shipped.bundle regularised.bundle --guidance 3 --picture unseen.png
"""

import argparse
from pathlib import Path

import numpy as np
from benchmarks.emoji_gallery import load_gallery, nearest
from benchmarks.image_features import image_features

from starflow.runtime import Sampler
from starflow.runtime.plain.images import grid, write_png

COMPOSED = ("green apple", "black apple", "blue rocket", "blue flower", "purple car", "red snowman")
HELD_OUT = ("automobile", "koala", "rabbit face", "maple leaf", "snowman", "pizza")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", help="bundles of models of emoji")
    parser.add_argument("--guidance", type=float, default=3.0, help="(default: 3)")
    parser.add_argument("--style", default="noto", help="noto, twemoji or fluent (default: noto)")
    parser.add_argument("--seed", type=int, default=1, help="(default: 1)")
    parser.add_argument("--picture", type=Path, required=True, help="the PNG to write")
    arguments = parser.parse_args()
    captions = [f"{text}, {arguments.style} style" for text in (*COMPOSED, *HELD_OUT)]
    gallery = load_gallery()
    training = np.flatnonzero(gallery.splits == "training")
    rows = []
    for bundle in arguments.bundles:
        with Sampler.open(bundle) as sampler:
            made = sampler.sample(captions, guidance=arguments.guidance, seed=arguments.seed)
        like = training[nearest(image_features(made), gallery.features[training])]
        for caption, most_similar in zip(captions, gallery.captions[like], strict=True):
            print(f"{bundle}: {caption}: most similar to {most_similar}")
        rows += [made, gallery.images[like]]
    write_png(arguments.picture, grid(np.concatenate(rows), len(captions)))


if __name__ == "__main__":
    main()
