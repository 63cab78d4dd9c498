"""How fast a recipe trains on this machine: a few steps of it, in both precisions and on more and more threads."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from starflow.training.config import Conditioning
from starflow.training.data.samples import Dataset, Samples
from starflow.training.proposal.proposal import LatentShape, Pace
from starflow.training.recipe import Recipe
from starflow.training.trainer import Trainer, in_latents

STEPS = 2  # that are timed, after one that is not
Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def measure_pace(values: Mapping[str, Any], latents: LatentShape | None = None) -> Pace:
    """Train a recipe on random images; its speed does not depend on what they show.

    Args:
        values: The recipe, by section and field.
        latents: The shapes of its autoencoder, if it has one, which encodes the random images.
    """
    recipe = Recipe.model_validate(dict(values))
    found: dict[tuple[int, Precision], float] = {}
    with TemporaryDirectory() as folder, _threads_kept():
        data = in_latents(recipe, _random_data(recipe, latents), Path(folder))

        def seconds(threads: int, precision: Precision) -> float:
            trainer = _trainer(recipe, data, Path(folder), threads, precision)
            trainer.train_step()
            found[threads, precision] = min(_seconds(trainer.train_step) for _ in range(STEPS))
            return found[threads, precision]

        least, *more = _thread_counts()
        precision = min(PRECISIONS, key=lambda each: seconds(least, each))
        threads = min((least, *more), key=lambda count: found.get((count, precision)) or seconds(count, precision))
        trainer = _trainer(recipe, data, Path(folder), threads, precision)
        sheet = _seconds(trainer.sample_sheet) + _seconds(lambda: trainer.judge(data.validation))
    return Pace(found[threads, precision], sheet, threads, precision)


def _thread_counts() -> list[int]:
    """One thread, half of the cores this process may use, and all of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({1, max(1, cores // 2), cores})


def _trainer(recipe: Recipe, data: Dataset, folder: Path, threads: int, precision: str) -> Trainer:
    values = recipe.model_dump()
    values["training"] |= {"threads": threads, "precision": precision}
    return Trainer(Recipe.model_validate(values), data, folder)


def _random_data(recipe: Recipe, latents: LatentShape | None) -> Dataset:
    """As many images as two batches hold, with conditions of the recipe's kind."""
    model, count = recipe.model.model_dump(), 2 * recipe.training.batch_size
    shape = latents.pixels if latents else (model["in_channels"], model["img_size"], model["img_size"])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    tokens, width = model["txt_size"], model["txt_dim"]
    if not tokens:
        samples, conditioning, null = Samples(images, None), Conditioning(), None
    elif tokens == 1:
        classes = width - 1
        samples = Samples(images, torch.randint(0, classes, (count,), generator=generator))
        conditioning, null = Conditioning(kind="class", num_classes=classes), torch.tensor(classes)
    else:
        samples = Samples(images, torch.randn(count, tokens, width, generator=generator))
        conditioning = Conditioning(kind="features", tokens=tokens, width=width)
        null = torch.zeros(tokens, width)
    return Dataset(samples, samples, samples, conditioning, null)


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def _threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
