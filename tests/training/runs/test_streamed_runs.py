"""Runs over images on disk: the steps of a run in memory, resumed exactly, in two processes, with few images in memory."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from starflow.training.data.dataset import load_dataset
from starflow.training.data.samples import Samples
from starflow.training.data.stored_images import ImageStore, StoredImages
from starflow.training.recipe import Recipe
from starflow.training.runs.batches import AHEAD, Batches
from starflow.training.runs.engine import Engine
from starflow.training.trainer import Trainer
from tests.training.data.streamed import digits, rows, write_shards
from tests.training.runs.test_engine import assert_same, finish, start
from tests.training.test_trainer import STARFLOW, losses

CPU = torch.device("cpu")
STREAMED = {"mode": "L", "size": 8, "readers": 2}


def recipe(data: dict[str, Any], **changes: Any) -> Recipe:
    training = {"steps": 12, "batch_size": 32, "warmup_steps": 2, "log_every": 1, "checkpoint_every": 5, "threads": 1}
    return Recipe.model_validate({"model": STARFLOW, "data": data, "training": training | changes})


def shards(folder: Path, **settings: Any) -> dict[str, Any]:
    images, labels = digits()
    pattern = write_shards(folder / "shards", images, cls=labels.tolist())
    return {"kind": "webdataset", "shards": pattern, **STREAMED, **settings}


def trained(folder: Path, recipe: Recipe, *stops: int) -> list[float]:
    for stop in (*stops, None):
        trainer = Trainer(recipe, load_dataset(recipe.data, folder), folder)
        assert trainer.resume() == (stop != stops[0] if stops else False)
        trainer.fit(stop)
    return losses(folder)


def test_the_steps_are_those_of_images_in_memory(tmp_path: Path) -> None:
    images, labels = digits()
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    rows(images, labels).save_to_disk(tmp_path / "hf")
    sources = {
        "npz": {"kind": "npz", "path": str(tmp_path / "data.npz")},
        "tar": shards(tmp_path, shuffle_buffer=None),
        "hf": {"kind": "huggingface", "path": str(tmp_path / "hf"), "label": "digit", **STREAMED},
    }
    found = {name: trained(tmp_path / name, recipe(data)) for name, data in sources.items()}
    assert len(found["npz"]) == 12
    assert found["tar"] == found["hf"] == found["npz"]


def test_a_resumed_run_sees_the_same_samples(tmp_path: Path) -> None:
    settings = recipe(shards(tmp_path, shuffle_buffer=40))
    whole, stopped = trained(tmp_path / "whole", settings), trained(tmp_path / "stopped", settings, 4, 7)
    assert whole == stopped


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    data = shards(tmp_path, shuffle_buffer=40)
    changes = {"steps": 50, "learning_rate": 3e-4, "checkpoint_every": 20}
    trained(tmp_path / "one", recipe(data, accumulate=2, **changes))
    finish(start(tmp_path / "two", recipe(data, **changes), "ddp"))
    assert_same(tmp_path / "one", tmp_path / "two", 1e-5)


class Rank(Engine):
    """One of two processes, without the other."""

    count = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


def test_processes_decode_disjoint_shares_of_a_batch(tmp_path: Path) -> None:
    data = load_dataset(recipe(shards(tmp_path)).data, tmp_path)
    whole = Batches(data.train, 0, 32, Engine())
    shares = [Batches(data.train, 0, 32, Rank(rank)) for rank in range(2)]
    for step in range(8):  # over the end of an epoch of three steps
        expected = whole.at(step, CPU)
        found = [share.at(step, CPU) for share in shares]
        assert [len(each.values) for each in found] == [16, 16]
        assert torch.equal(torch.cat([each.values for each in found]), expected.values)
        for each in found:  # conditions are in memory, those of the whole batch
            assert each.condition is not None and expected.condition is not None
            assert torch.equal(each.condition, expected.condition)


class Counted:
    """A store that counts the images which were decoded."""

    def __init__(self, store: ImageStore) -> None:
        self.store, self.shards, self.digest = store, store.shards, store.digest
        self.decoded, self.lock = 0, threading.Lock()

    def __len__(self) -> int:
        return len(self.store)

    def image(self, index: int, mode: Literal["L", "RGB"]) -> Image.Image:
        with self.lock:
            self.decoded += 1
        return self.store.image(index, mode)


def test_only_a_few_batches_are_decoded_ahead(tmp_path: Path) -> None:
    data = load_dataset(recipe(shards(tmp_path)).data, tmp_path)
    assert isinstance(data.train.values, StoredImages)
    store = Counted(data.train.values.store)
    batches = Batches(Samples(replace(data.train.values, store=store), None), 0, 4, Engine())
    for step in range(60):  # more than two epochs
        batches.at(step, CPU)
        time.sleep(0.005)  # a step, during which the readers may run ahead
        assert (step + 1) * 4 <= store.decoded <= (step + 1 + AHEAD) * 4
    batches.close()
    assert store.decoded > 60 * 4  # they did
