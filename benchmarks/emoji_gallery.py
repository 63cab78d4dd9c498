"""All real emoji, and which of them a picture is nearest to: the judge of text-to-image emoji."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.image_features import image_features
from numpy.typing import NDArray

ARCHIVE = Path("out/emoji/emoji-text.npz")


@dataclass(frozen=True)
class Agreement:
    """Part of the pictures whose nearest real emoji is of the group, and of the subgroup, that the caption asks for."""

    group: float
    subgroup: float


@dataclass(frozen=True)
class Gallery:
    """Every real emoji: all splits, styles and skin tones.

    Attributes:
        images: uint8 [N, 64, 64, 3].
        features: Of the ImageNet network, float32 [N, 1280].
        captions: With the style, str [N].
        groups, subgroups: int64 [N], of 10 and of 99.
        splits: What each is of a model's training: "training", "validation" or "held-out", str [N].
    """

    images: NDArray[np.uint8]
    features: NDArray[np.float32]
    captions: NDArray[np.str_]
    groups: NDArray[np.int64]
    subgroups: NDArray[np.int64]
    splits: NDArray[np.str_]

    def draw(self, count: int, split: str) -> NDArray[np.int64]:
        """Indices of up to `count` emoji without skin tones, of one split; always the same ones.

        Each is as likely as any other, so groups stand in their natural proportions.
        """
        toned = np.array([": " in text and "skin tone" in text for text in self.captions])
        candidates = np.flatnonzero((self.splits == split) & ~toned)
        return np.sort(np.random.default_rng(0).permutation(candidates)[:count])

    def find(self, captions: NDArray[np.str_]) -> NDArray[np.int64]:
        """Indices of the emoji with these captions; raises SystemExit at one that no emoji has."""
        places = {text: index for index, text in enumerate(self.captions)}
        unknown = [text for text in captions if text not in places]
        if unknown:
            raise SystemExit(f"{ARCHIVE} has no emoji with the caption '{unknown[0]}'")
        return np.array([places[text] for text in captions])

    def agreement(self, features: NDArray[np.float32], asked: NDArray[np.int64]) -> Agreement:
        """Judge pictures by their features [n, 1280]; asked [n] are the indices of the emoji whose captions were given."""
        return self._agreement(nearest(features, self.features), asked)

    def ceiling(self, asked: NDArray[np.int64], *, other_emoji: bool) -> Agreement:
        """The same for the real pictures themselves, each without its own place in the gallery.

        Args:
            asked: Indices [n].
            other_emoji: Leave out the same emoji in other styles as well.
        """
        keys = np.arange(len(self.captions))
        if other_emoji:
            _, keys = np.unique([text.rpartition(", ")[0] for text in self.captions], return_inverse=True)
        return self._agreement(nearest(self.features[asked], self.features, keys[asked][:, None] == keys), asked)

    def chance(self, asked: NDArray[np.int64]) -> Agreement:
        """Of pictures drawn from the gallery at random."""
        return Agreement(
            float((np.bincount(self.groups) / len(self.groups))[self.groups[asked]].mean()),
            float((np.bincount(self.subgroups) / len(self.subgroups))[self.subgroups[asked]].mean()),
        )

    def _agreement(self, found: NDArray[np.int64], asked: NDArray[np.int64]) -> Agreement:
        return Agreement(
            float((self.groups[found] == self.groups[asked]).mean()),
            float((self.subgroups[found] == self.subgroups[asked]).mean()),
        )


def load_gallery(validation: Path | None = None) -> Gallery:
    """Read the emoji and compute their features; later calls take a second.

    Args:
        validation: An archive with the captions that were held out for validation, `validation_captions`. Without one, they
            count as training captions, which they are for a model that was trained on `ARCHIVE`.
    """
    with np.load(ARCHIVE) as file:
        both = {
            name: np.concatenate([file[name], file[f"test_{name}"]])
            for name in ("images", "captions", "groups", "subgroups")
        }
        held_out = np.arange(len(both["images"])) >= len(file["images"])
    apart = np.array([], np.str_)
    if validation:
        with np.load(validation) as file:
            apart = file["validation_captions"]
    splits = splits_of(both["captions"], held_out, apart)
    return Gallery(
        both["images"], image_features(both["images"]), both["captions"], both["groups"], both["subgroups"], splits
    )


def splits_of(
    captions: NDArray[np.str_], held_out: NDArray[np.bool_], validation: NDArray[np.str_]
) -> NDArray[np.str_]:
    """Name the split of every emoji, str [N]: held out for the test, one of the captions for validation, or else training."""
    return np.select([held_out, np.isin(captions, validation)], ["held-out", "validation"], "training")


def nearest(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], without: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Index of the nearest entry by cosine, of features [n, D] among [N, D]; `without` [n, N] marks pairs left out."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery))
    similarity = a @ b.T
    if without is not None:
        similarity[without] = -np.inf
    return similarity.argmax(axis=1)
