"""The three parts: fixed, apart from each other, and in the proportions of the whole."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from starflow.runtime.plain.errors import DataError
from starflow.training.data.dataset import load_dataset
from starflow.training.data.samples import Samples
from starflow.training.data.source import PointsSource
from starflow.training.data.split import digest, representative, split
from starflow.training.text.text_features import TextFeatures

SIZES = (100, 37, 250, 5, 608)  # of the classes, in this order: a set that is sorted by class
LABELS = torch.repeat_interleave(torch.arange(5), torch.tensor(SIZES))


def samples(condition: Tensor | TextFeatures | None, count: int = 1000) -> Samples:
    return Samples(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), condition)


def assert_proportional(part: Tensor, strata: Tensor) -> None:
    """Each stratum has its share of the part, to within one sample."""
    counts, sizes = torch.bincount(strata[part], minlength=int(strata.max()) + 1), torch.bincount(strata)
    assert (counts - sizes * len(part) / len(strata)).abs().max() <= 1


@pytest.mark.parametrize(
    "order", [torch.arange(1000), torch.randperm(1000, generator=torch.Generator().manual_seed(1))]
)
def test_every_part_has_the_classes_of_the_whole(order: Tensor) -> None:
    labels = LABELS[order]
    parts = split(samples(labels), validation=0.05, test=0.1)
    assert [len(part) for part in parts] == [850, 50, 100]
    assert torch.cat(parts).sort().values.tolist() == list(range(1000))
    assert_proportional(parts.test, labels)
    assert (torch.bincount(labels[parts.validation]) - 0.05 * torch.tensor(SIZES)).abs().max() <= 1.1
    again = split(samples(labels), validation=0.05, test=0.1)
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


def test_equal_captions_are_a_stratum() -> None:
    starts = LABELS * 3  # captions of three tokens
    features = TextFeatures(torch.zeros(15, 2), starts, torch.full((1000,), 3), 3)
    assert_proportional(split(samples(features), validation=0.05, test=0.2).test, LABELS)


def test_what_stands_for_a_sorted_part_is_not_its_beginning() -> None:
    chosen = representative(samples(LABELS), 256)
    assert len(chosen.unique()) == 256
    assert_proportional(chosen, LABELS)
    assert representative(samples(LABELS), None).tolist() == list(range(1000))
    assert representative(samples(LABELS), 5000).tolist() == list(range(1000))


def test_without_classes_the_test_part_is_a_plain_permutation() -> None:
    """The one that was held out before there was a validation part."""
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(20240))
    for condition in (None, torch.zeros(1000, 2, 3)):
        assert torch.equal(split(samples(condition), validation=0.1, test=0.05).test, order[:50].sort().values)


def test_a_part_that_the_source_brings_is_not_taken_away() -> None:
    parts = split(samples(LABELS), validation=0.1, test=0.0)
    assert [len(part) for part in parts] == [900, 100, 0]
    with pytest.raises(DataError, match=r"found 2 image\(s\), too few to hold some out; at least 3 are needed"):
        split(samples(None, 2), validation=0.1, test=0.1)
    assert [len(part) for part in split(samples(None, 2), validation=0.1, test=0.0)] == [1, 1, 0]


def test_the_digest_tells_splits_apart(tmp_path: Path) -> None:
    sources = [
        PointsSource.model_validate({"kind": "points", "shape": "moons", "count": 100, "validation": share})
        for share in (0.1, 0.1, 0.2)
    ]
    one, same, other = (load_dataset(source, tmp_path).split for source in sources)
    assert one == same != other
    assert len(digest(torch.arange(3))) == 64
