"""Time of a continuous flow's samples: a batch by each sampler's plan, a pass of its network, and the floor under it.

A pass has to read every weight once; a floor of memory says little where weights stay in a cache or many rows make it a
matter of arithmetic, but it is the same measure the other family has. Samplers take turns; figures are medians.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.sampler import Sampler


@dataclass(frozen=True)
class IntegrationTiming:
    """What one sampler took.

    Attributes:
        variant: Its variant.
        plan: Solver and steps, in words.
        batch: Images integrated together.
        passes: Runs of the network in a batch.
        batch_milliseconds: Time of a batch.
        pass_milliseconds: The same over its passes.
        floor_milliseconds: Time to read the weights once.
        spread: Interquartile range of a batch's time over its median.
        images_per_second: Of whole batches.
    """

    variant: str
    plan: str
    batch: int
    passes: int
    batch_milliseconds: float
    pass_milliseconds: float
    floor_milliseconds: float
    spread: float
    images_per_second: float


@dataclass(frozen=True)
class IntegrationBenchmark:
    """What was measured, and the bandwidth beside it in bytes a second."""

    bandwidth: float
    repetitions: int
    timings: tuple[IntegrationTiming, ...]


def benchmark_integration(
    samplers: Sequence[Sampler],
    *,
    repetitions: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> IntegrationBenchmark:
    """Time samplers of continuous flows, in turn.

    Args:
        samplers: One for each variant to compare, all on one device.
        repetitions: How often each integrates one batch.
        progress: Called with repetitions done and in total.
    """
    taken: list[list[float]] = [[] for _ in samplers]
    passes = [0] * len(samplers)
    bandwidths = []
    with samplers[0].backend.bandwidth_probe() as probe:
        for repetition in range(repetitions + 1):  # the first one loads sessions and warms up
            bandwidths.append(probe.measure())
            for index, sampler in enumerate(samplers):
                seconds, passes[index] = _batch(sampler)
                taken[index] += [seconds] if repetition else []
            progress(repetition, repetitions)
    bandwidth = statistics.median(bandwidths)
    timings = tuple(
        _timing(sampler, seconds, count, bandwidth)
        for sampler, seconds, count in zip(samplers, taken, passes, strict=True)
    )
    return IntegrationBenchmark(bandwidth, repetitions, timings)


def _batch(sampler: Sampler) -> tuple[float, int]:
    """Seconds of a batch, and its passes."""
    manifest, spec = sampler.bundle.continuous, sampler.manifest.conditioning
    condition: NDArray | None = None
    if spec.kind == "features":
        condition = np.zeros((spec.tokens, spec.width), np.float32)
    elif spec.kind != "none":
        condition = np.arange(manifest.batch) % spec.num_classes
    null = condition if spec.kind == "features" else None
    passes: list[int] = []
    start = time.perf_counter()
    sampler.generate(
        sampler.noise(manifest.batch),
        condition,
        null,
        guidance=float(manifest.guided),
        on_passes=lambda _, count: passes.append(count),
    )
    return time.perf_counter() - start, passes[0]


def _timing(sampler: Sampler, seconds: Sequence[float], passes: int, bandwidth: float) -> IntegrationTiming:
    batch, median = sampler.manifest.batch, statistics.median(seconds)
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [median] * 3
    return IntegrationTiming(
        variant=sampler.variant.name,
        plan=sampler.decoding,
        batch=batch,
        passes=passes,
        batch_milliseconds=1000 * median,
        pass_milliseconds=1000 * median / passes,
        floor_milliseconds=1000 * sampler.bundle.graph(sampler.variant, 0).weight_bytes / bandwidth,
        spread=(quartiles[2] - quartiles[0]) / median,
        images_per_second=batch / median,
    )
