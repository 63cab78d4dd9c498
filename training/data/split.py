"""Which samples a model learns from, is chosen by and is tested on: a fixed permutation, stratified by the condition."""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from starflow.runtime.plain.errors import DataError
from starflow.training.data.samples import Samples
from starflow.training.text.text_features import TextFeatures

SPLIT_SEED = 20240  # fixed: every run of every recipe holds out the same images


class Split(NamedTuple):
    """The three parts, as indices that are sorted and exclude each other."""

    train: Tensor  # int64 [N - V - H]
    validation: Tensor  # int64 [V]
    test: Tensor  # int64 [H]


def strata_of(samples: Samples) -> Tensor | None:
    """What a part of samples must keep in proportion, int64 [N]: classes, or equal captions; None without either."""
    condition = samples.condition
    if isinstance(condition, TextFeatures):
        return condition.starts  # equal captions share their rows
    if condition is None or condition.is_floating_point():
        return None
    return condition


def drawn(strata: Tensor | None, total: int, count: int) -> Tensor:
    """`count` of `total` indices, sorted; always the same ones.

    With strata int64 [total], every one of them has its share: at most one sample more or less than its proportion.
    """
    order = torch.randperm(total, generator=torch.Generator().manual_seed(SPLIT_SEED))
    if strata is None or not count:
        return order[:count].sort().values
    order = order[torch.sort(strata[order], stable=True).indices]
    middles = (2 * torch.arange(count) + 1) * total // (2 * count)
    return order[middles].sort().values


def representative(samples: Samples, most: int | None) -> Tensor:
    """Indices of at most `most` samples that stand for all of them; None: all."""
    return drawn(strata_of(samples), len(samples), min(len(samples), most or len(samples)))


def split(samples: Samples, *, validation: float, test: float) -> Split:
    """Hold out two shares of the samples, each at least one of them; a share of 0 is none at all.

    Raises:
        DataError: nothing is left to train on.
    """
    total, strata = len(samples), strata_of(samples)
    tested, chosen_by = (max(1, round(total * share)) if share else 0 for share in (test, validation))
    if tested + chosen_by >= total:
        least = 1 + bool(test) + bool(validation)
        raise DataError(f"found {total} image(s), too few to hold some out; at least {least} are needed")
    for_test = drawn(strata, total, tested)
    rest = _without(torch.arange(total), for_test)
    for_validation = rest[drawn(None if strata is None else strata[rest], len(rest), chosen_by)]
    return Split(_without(rest, for_validation), for_validation, for_test)


def digest(indices: Tensor) -> str:
    """A digest of a part, by which a resumed run knows it again."""
    return hashlib.sha256(indices.numpy().tobytes()).hexdigest()


def _without(indices: Tensor, others: Tensor) -> Tensor:
    return indices[~torch.isin(indices, others)]
