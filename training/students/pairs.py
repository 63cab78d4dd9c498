"""What a student learns from: noise of a flow block and the tokens that the exact sampler makes of it, in a folder of shards.

    pairs.json               a `PairSet`: what the shards are a function of
    shard-00000.safetensors  noise, tokens, condition, guidance

A shard is a function of the set and its number, so drawing goes on where it was stopped.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.errors import CheckpointError, UsageError
from starflow.training.data.samples import Samples
from starflow.training.frozen import Frozen, read_json

RECORD = "pairs.json"
SHARD = 256  # pairs in one file
OTHER = {  # fields that pairs are a function of, and what a message calls another value
    "teacher": "another teacher",
    "block": "another flow block",
    "seed": "another seed",
    "guidance": "another range of guidance",
    "conditions": "other conditions",
}


class PairSet(Frozen):
    """`pairs.json`."""

    format_version: int = Field(1, ge=1, le=1)
    teacher: str  # SHA-256 of the teacher's model.safetensors
    block: int = Field(ge=0)
    seed: int = Field(ge=0)
    guidance: tuple[float, float]  # weights are drawn between these
    conditions: str | None = None  # SHA-256 of the captions' features; None for classes and without conditions
    count: int = Field(gt=0)  # of pairs

    @property
    def shards(self) -> int:
        """Number of files."""
        return -(-self.count // SHARD)


@dataclass(frozen=True)
class Pairs(Samples):
    """Pairs in memory.

    `values` are [N, 2, T, D] float32: noise, and tokens, both in block order. `condition` are class ids or rows of the table of
    features, int64 [N]; None without conditions.
    """

    guidance: Tensor | None = None  # [N] float32, the weight each was sampled with

    def __getitem__(self, index: Tensor) -> "Pairs":
        assert isinstance(self.condition, Tensor | None)
        condition, guidance = (None if each is None else each[index] for each in (self.condition, self.guidance))
        return Pairs(self.tensor[index], condition, None, guidance)

    def resident(self, device: torch.device) -> Self:
        return replace(super().resident(device), guidance=None if self.guidance is None else self.guidance.to(device))


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{number:05d}.safetensors"


def begin_pairs(folder: Path, pairs: PairSet) -> None:
    """Make a folder for a set of pairs, or see that it is of that set; one that holds fewer goes on.

    Raises:
        UsageError: the folder holds another set.
    """
    if (folder / RECORD).is_file():
        found = read_json(folder / RECORD, PairSet)
        for field, other in OTHER.items():
            was, now = getattr(found, field), getattr(pairs, field)
            if was != now:
                raise UsageError(f"{folder}: holds pairs of {other} ({was}, not {now}); name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / RECORD) as temporary:
        temporary.write_text(pairs.model_dump_json(indent=2) + "\n")


def write_shard(folder: Path, number: int, tensors: dict[str, Tensor]) -> None:
    """Write one shard, whole or not at all."""
    with atomic_file(shard_path(folder, number)) as temporary:
        save_file(tensors, temporary)


def load_pairs(folder: Path) -> Pairs:
    """Read all pairs of a folder.

    Raises:
        CheckpointError: a shard is missing or damaged.
    """
    pairs = read_json(folder / RECORD, PairSet)
    shards = []
    for number in range(pairs.shards):
        path = shard_path(folder, number)
        try:
            shards.append(load_file(path))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: missing or damaged ({error}); remove it, and it is drawn again") from None
    whole = {name: torch.cat([shard[name] for shard in shards])[: pairs.count] for name in shards[0]}
    values = torch.stack([whole["noise"], whole["tokens"]], dim=1)
    return Pairs(values, whole.get("condition"), None, whole["guidance"])
