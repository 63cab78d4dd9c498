"""How fast a recipe trains on this machine: a few steps of it on all cores and on fewer, and a sheet of samples."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from starflow.runtime.plain.progress import Report, no_report
from starflow.training.config import Conditioning
from starflow.training.data.samples import Dataset, Samples
from starflow.training.proposal.proposal import LatentShape, Pace
from starflow.training.recipe import Recipe
from starflow.training.trainer import Trainer, in_latents

STEPS, SECONDS = (
    3,
    2.0,
)  # that are timed for each way to run, after one that warms up: so many steps, or those of the time
FAR = 3  # a first step that takes so many times what a step may take is not worth a second one
PARTS = 4  # of the progress bar: the first step, on all cores, on fewer, a sheet of samples
Precision = Literal["fp32", "bf16"]


def measure_pace(
    values: Mapping[str, Any],
    latents: LatentShape | None = None,
    limit: float = math.inf,
    report: Report = no_report,
) -> Pace | None:
    """Train a recipe on random images; its speed does not depend on what they show.

    Args:
        values: The recipe, by section and field.
        latents: The shapes of its autoencoder, if it has one, which encodes the random images.
        limit: Seconds that a step may take.
        report: Takes what is being measured.

    Returns:
        The pace, or None where a step takes longer than the limit, however it runs.
    """
    recipe = Recipe.model_validate(dict(values))
    with TemporaryDirectory() as folder, _threads_kept():
        data = in_latents(recipe, _random_data(recipe, latents), Path(folder))
        report(0, PARTS, "first step")
        trainer = _trainer(recipe, data, Path(folder), "fp32")
        threads, *fewer = _thread_counts()
        torch.set_num_threads(threads)
        if _seconds(trainer.train_step) > FAR * limit:
            return None
        report(1, PARTS, f"steps on {threads} thread(s)")
        best = _step_seconds(trainer)
        for count in fewer:
            report(2, PARTS, f"steps on {count} thread(s)")
            torch.set_num_threads(count)
            if (seconds := _step_seconds(trainer)) >= best:
                break
            threads, best = count, seconds
        torch.set_num_threads(threads)
        precision: Precision = "fp32"
        if _bf16_is_faster():
            report(2, PARTS, "steps in bf16")
            half = _trainer(recipe, data, Path(folder), "bf16")
            half.train_step()
            if (seconds := _step_seconds(half)) < best:
                trainer, precision, best = half, "bf16", seconds
        if best > limit:
            return None
        report(3, PARTS, "a sheet of samples")
        sheet = _seconds(trainer.sample_sheet) + _seconds(lambda: trainer.judge(data.validation))
    return Pace(best, sheet, threads, precision)


def _thread_counts() -> list[int]:
    """All cores that this process may use, half of them, and so on down to one."""
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return counts


def _step_seconds(trainer: Trainer) -> float:
    """Of the fastest of a few steps."""
    found: list[float] = []
    while len(found) < STEPS and sum(found) < SECONDS:
        found.append(_seconds(trainer.train_step))
    return min(found)


def _bf16_is_faster() -> bool:
    """Whether a product of matrices is: without instructions for bf16, a step would take many times as long, and so would timing it."""

    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.ones(1024, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
        left @ right
        return min(_seconds(lambda: left @ right) for _ in range(3))

    return seconds(torch.bfloat16) < seconds(torch.float32)


def _trainer(recipe: Recipe, data: Dataset, folder: Path, precision: Precision) -> Trainer:
    values = recipe.model_dump()
    values["training"] |= {"precision": precision}
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


def _seconds(call: Callable[[], Any]) -> float:
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
