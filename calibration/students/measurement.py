"""Measuring a student as it will be sampled: exported, run by the runtime, beside the exact sampler and from the same noise."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starflow.calibration.cases import GivenConditions
from starflow.calibration.distribution import SEEDS, Distribution, condition_groups
from starflow.calibration.students.likelihood import teacher_bits
from starflow.calibration.students.teacher_bundle import BATCH, LOWERINGS
from starflow.export.export_options import ExportOptions
from starflow.export.exporter import export_checkpoint
from starflow.runtime.diagnostics.benchmark import relative_error
from starflow.runtime.diagnostics.take_turns import take_turns
from starflow.runtime.plain.images import grid
from starflow.runtime.plain.progress import Report, no_report
from starflow.runtime.sampler import Sampler

ROUNDS = 5  # of the batches that are timed
SHOWN = 10  # images in a row of the picture
PER_CONDITION = 4  # samples of each condition at least


@dataclass(frozen=True)
class Way:
    """The samples of one way to decode, against those of the exact sampler from the same noise."""

    plan: str  # `sequential`, `student` or `student+N`
    error: float  # relative error of finished data
    frechet: float  # Frechet distance; of `sequential`, between two sets of it
    diversity: float  # standard deviation within a condition, over the exact sampler's
    precision: float  # share of samples that lie among the exact sampler's
    recall: float  # share of the exact sampler's that lie among them
    bits_per_dim: float | None  # mean by the unguided teacher; None if some are beyond float32, see `teacher_bits`
    milliseconds: float  # one batch of `BATCH` images


@dataclass(frozen=True)
class Measured:
    """All ways, the exact sampler first."""

    images: int
    guidance: float
    ways: tuple[Way, ...]
    picture: NDArray[np.uint8] | None  # [H, W, C]: a row for each way, from the same noise; None of bare latents


def measure(
    checkpoint: Path,
    students: Sequence[Path],
    bundle: Path,
    given: GivenConditions | None,
    *,
    images: int,
    guidance: float,
    passes: Sequence[int],
    progress: Report = no_report,
) -> Measured:
    """Sample with the exact sampler and by the student, and compare.

    Args:
        checkpoint: The teacher's folder.
        students: Folders of students, of which every way but the exact sampler runs all.
        bundle: Folder to export both into.
        given: Conditions of a model that takes features.
        images: Number of samples of each way.
        guidance: Weight of all of them.
        passes: Numbers of exact passes after the student's own, 0 among them.
    """
    options = ExportOptions(
        lowerings=LOWERINGS, batch=BATCH, denoisers=(), students=[str(student) for student in students]
    )
    manifest = export_checkpoint(checkpoint, bundle, options, replace=True, progress=progress)
    condition, null = _conditions(manifest.conditioning.num_classes, given, images)
    plans = ["sequential", *("student" if not count else f"student+{count}" for count in passes)]
    parts = 2 * len(plans) + 1
    with ExitStack() as stack:
        samplers = [stack.enter_context(Sampler.open(bundle, variant="cpu-fp32", plan=plan)) for plan in plans]

        def sample(number: int, sampler: Sampler, seed: int) -> NDArray[np.float32]:
            done = _part(number, parts, progress)
            return sampler.generate(sampler.noise(images, seed), condition, null, guidance=guidance, progress=done)

        made = [sample(number, sampler, SEEDS[0]) for number, sampler in enumerate(samplers)]
        other = sample(len(plans), samplers[0], SEEDS[1])
        bits = [
            teacher_bits(samplers[0], x, condition, _part(number, parts, progress))
            for number, x in enumerate(made, len(plans) + 1)
        ]
        first = None if condition is None else condition[:BATCH]
        batches = [partial(_batch, sampler, sampler.noise(BATCH, 0), first, null, guidance) for sampler in samplers]
        times = take_turns(batches, ROUNDS)
        picture = None
        if samplers[0].manifest.image.mode != "latent":
            shown = [sampler.to_images(x[:SHOWN]) for sampler, x in zip(samplers, made, strict=True)]
            picture = grid(np.concatenate(shown), min(SHOWN, images))
    exact = Distribution(made[0], condition_groups(condition, images), other)
    ways = []
    for plan, x, likelihood, taken in zip(plans, made, bits, times, strict=True):
        compared = other if plan == "sequential" else x
        precision, recall = exact.precision_and_recall(compared)
        ways.append(
            Way(
                plan,
                relative_error(x, made[0]),
                exact.frechet(compared),
                exact.diversity(compared),
                precision,
                recall,
                likelihood,
                taken.milliseconds,
            )
        )
    return Measured(images, guidance, tuple(ways), picture)


def _part(done: int, of: int, progress: Report) -> Callable[[int, int], None]:
    """Progress within part `done` of so many."""
    return lambda work, total: progress(done * total + work, of * total, "measuring")


def _batch(
    sampler: Sampler, noise: NDArray, condition: NDArray | None, null: NDArray | None, guidance: float, lap: object
) -> None:
    sampler.generate(noise, condition, null, guidance=guidance)


def _conditions(classes: int, given: GivenConditions | None, count: int) -> tuple[NDArray | None, NDArray | None]:
    """Of `count` samples, and the null condition: each several times, since variety within one is measured, and from all over."""
    known = classes if given is None else len(given.tokens)
    if not known:
        return None, None
    distinct = min(known, count // PER_CONDITION)
    chosen = np.arange(count) % distinct * known // distinct
    return (chosen, None) if given is None else (given.tokens[chosen], given.null)
