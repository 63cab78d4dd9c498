"""The nearest real emoji against scikit-learn's search, and what counts as agreement, on made-up features."""

import numpy as np
import pytest
from benchmarks.emoji_gallery import Gallery, nearest, splits_of


@pytest.fixture
def gallery() -> Gallery:
    """A cat in two styles, a dog and a hand of two skin tones; the dog is held out."""
    captions = [
        "cat, noto style",
        "cat, fluent style",
        "dog, noto style",
        "hand, noto style",
        "hand: dark skin tone, noto style",
    ]
    features = np.array([[1, 0, 0], [0.9, 0.3, 0], [0.8, 0.6, 0], [0, 0, 1], [0, 0.1, 1]], np.float32)
    return Gallery(
        images=np.zeros((5, 1, 1, 3), np.uint8),
        features=features,
        captions=np.array(captions),
        groups=np.array([0, 0, 0, 1, 1]),
        subgroups=np.array([0, 0, 1, 2, 2]),
        splits=np.array(["training", "training", "held-out", "training", "training"]),
    )


def test_nearest_is_scikit_learns() -> None:
    from sklearn.neighbors import NearestNeighbors  # takes seconds to load, and no other test here needs it

    draw = np.random.default_rng(0)
    queries, others = draw.standard_normal((2, 300, 40)).astype(np.float32)
    search = NearestNeighbors(n_neighbors=2, metric="cosine", algorithm="brute").fit(others)
    expected = search.kneighbors(queries, return_distance=False)
    assert (nearest(queries, others) == expected[:, 0]).all()
    without_first = np.arange(300) == expected[:, :1]
    assert (nearest(queries, others, without_first) == expected[:, 1]).all()


def test_agreement_counts_groups_and_subgroups(gallery: Gallery) -> None:
    pictures = np.array(
        [[5, 0.1, 0], [4, 3.1, 0], [0, 0, 2], [2, 0, 0]], np.float32
    )  # like a cat, a dog, a hand, a cat
    found = gallery.agreement(pictures, np.array([0, 0, 3, 3]))
    assert (found.group, found.subgroup) == (0.75, 0.5)


def test_the_ceiling_leaves_the_own_picture_out(gallery: Gallery) -> None:
    asked = np.array([0, 2, 3])
    own = gallery.ceiling(asked, other_emoji=False)  # the cat finds its other style, the dog a cat, the hand its tone
    assert np.allclose((own.group, own.subgroup), (1, 2 / 3))
    other = gallery.ceiling(asked, other_emoji=True)  # the cat finds the dog
    assert np.allclose((other.group, other.subgroup), (1, 1 / 3))


def test_chance_is_that_of_a_random_picture(gallery: Gallery) -> None:
    chance = gallery.chance(np.array([0, 3]))
    assert np.allclose((chance.group, chance.subgroup), ((0.6 + 0.4) / 2, (0.4 + 0.4) / 2))


def test_captions_are_drawn_from_one_split_and_without_skin_tones(gallery: Gallery) -> None:
    assert gallery.draw(10, "training").tolist() == [0, 1, 3]
    assert gallery.draw(10, "held-out").tolist() == [2]
    assert gallery.draw(2, "training").tolist() == gallery.draw(2, "training").tolist()


def test_validation_captions_stand_apart_unless_they_are_held_out(gallery: Gallery) -> None:
    held_out = gallery.splits == "held-out"
    found = splits_of(gallery.captions, held_out, np.array(["cat, fluent style", "dog, noto style"]))
    assert found.tolist() == ["training", "validation", "held-out", "training", "training"]
    assert splits_of(gallery.captions, held_out, np.array([], np.str_)).tolist() == gallery.splits.tolist()


def test_a_caption_that_no_emoji_has_is_named(gallery: Gallery) -> None:
    assert gallery.find(np.array(["dog, noto style"])).tolist() == [2]
    with pytest.raises(SystemExit, match="no emoji with the caption 'a cow'"):
        gallery.find(np.array(["dog, noto style", "a cow"]))
