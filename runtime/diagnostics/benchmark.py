"""Variants and decode plans against each other and against the memory floor.

A single step has to read every weight of its block once and the valid part of the caches once. Floor = those bytes divided by
the read bandwidth measured between the repetitions. Whatever is compared runs interleaved in one process; figures are medians.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.graph_spec import GraphSpec
from starflow.runtime.diagnostics.benchmark_timer import BatchTimer
from starflow.runtime.diagnostics.memory_use import (
    MeasuredMemory,
    MemoryGauge,
    PredictedMemory,
    cache_bytes,
    predict_memory,
)
from starflow.runtime.plans.calibrated_decode_plan import predicted_milliseconds
from starflow.runtime.plans.decode_plan import DecodePlan
from starflow.runtime.sampler import Sampler

MOST_PRECISE_FIRST = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")


@dataclass(frozen=True)
class BlockTiming:
    """Steps of one flow block: medians over the repetitions, one value per repetition being the mean over its tokens.

    Attributes:
        block: Flow block, or None for the whole flow.
        milliseconds: Time per token: of the block's whole sequence, prefill included, over the number of tokens.
        spread: Interquartile range over the median.
        passes: Runs of the network in a sequence, prefill apart; the mean over the repetitions.
        bytes: Weights and mean valid cache a token reads: of a step, times passes for each token.
        floor_milliseconds: bytes / bandwidth.
    """

    block: int | None
    milliseconds: float
    spread: float
    passes: float
    bytes: int
    floor_milliseconds: float

    @property
    def percent_of_floor(self) -> float:
        """100 is as fast as memory allows; more means the weights stayed in a cache."""
        return 100 * self.floor_milliseconds / self.milliseconds


@dataclass(frozen=True)
class VariantTiming:
    """One variant, decoded in one way: its blocks from the top down, the whole flow last.

    Attributes:
        variant: Its name.
        decoding: Token by token, or by the sampler's plan.
        batch: Images decoded together.
        rows: What was measured.
        images_per_second: Whole batches, prefill included.
        batch_milliseconds: Time of a batch.
        predicted_milliseconds: What the plan's calibration says it takes, where it was calibrated.
        error: Of the batch against the exact sampler's (see `Benchmark.exact`), ||x - exact|| / ||exact||; None for that
            one itself.
    """

    variant: str
    decoding: Literal["sequential", "plan"]
    batch: int
    rows: tuple[BlockTiming, ...]
    images_per_second: float
    batch_milliseconds: float
    predicted_milliseconds: float | None
    error: float | None

    @property
    def total(self) -> BlockTiming:
        return self.rows[-1]

    @property
    def image_milliseconds(self) -> float:
        """Time of a batch over its images."""
        return self.batch_milliseconds / self.batch


@dataclass(frozen=True)
class VariantMemory:
    """Memory of one variant, all blocks open, a batch decoded in every way it was timed.

    Attributes:
        variant: Its name.
        predicted: From the manifest.
        measured: Growth of this process; None where the memory is not the host's, or the system does not tell.
    """

    variant: str
    predicted: PredictedMemory
    measured: MeasuredMemory | None


@dataclass(frozen=True)
class Benchmark:
    """What was measured, and the bandwidth beside it.

    Attributes:
        bandwidth: Bytes a second.
        repetitions: Batches each decoded.
        exact: The variant whose samples, decoded token by token, errors are relative to: the most precise of those compared,
            the first of several.
        variants: Times.
        memory: Bytes, one entry for each sampler.
    """

    bandwidth: float
    repetitions: int
    exact: str
    variants: tuple[VariantTiming, ...]
    memory: tuple[VariantMemory, ...]


def step_bytes(graph: GraphSpec, block: Block) -> int:
    """Bytes one step reads at least: all weights, and the caches up to the mean position of the tokens."""
    tokens = np.arange(block.prefix, block.capacity) + 1
    return graph.weight_bytes + round(cache_bytes(graph) * float(tokens.mean()) / block.capacity)


def run_benchmark(
    samplers: Sequence[Sampler],
    *,
    guidance: float,
    repetitions: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Benchmark:
    """Time samplers against each other, interleaved; one with a plan decodes by it and token by token.

    Args:
        samplers: One for each variant to compare, of one bundle and on one device; not used before.
        guidance: Weight; time does not depend on its value, only on the exported rows.
        repetitions: How often each decodes one batch.
        progress: Called with repetitions done and in total.
    """
    timers, memory, bandwidths = [], [], []
    with samplers[0].backend.bandwidth_probe() as probe:
        for sampler in samplers:
            own = [BatchTimer(sampler, SEQUENTIAL, guidance)]
            if isinstance(sampler.plan, DecodePlan) and sampler.plan.blocks:
                own.append(BatchTimer(sampler, sampler.plan, guidance))
            memory.append(_open(sampler, own))
            timers += own
        for repetition in range(repetitions):
            bandwidths.append(probe.measure())
            for timer in timers:
                timer.run()
            progress(repetition + 1, repetitions)
    bandwidth = statistics.median(bandwidths)
    exact = min(
        (timer for timer in timers if timer.plan == SEQUENTIAL),
        key=lambda timer: MOST_PRECISE_FIRST.index(timer.sampler.variant.precision),
    )
    timings = tuple(_timing(timer, exact, bandwidth) for timer in timers)
    return Benchmark(bandwidth, repetitions, exact.sampler.variant.name, timings, tuple(memory))


def relative_error(found: NDArray, expected: NDArray) -> float:
    """||found - expected|| / ||expected||."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _open(sampler: Sampler, timers: Sequence[BatchTimer]) -> VariantMemory:
    """Open the sampler's blocks by decoding a batch in each way, and watch the memory that takes."""
    bundle, variant = sampler.bundle, sampler.variant
    gauge = MemoryGauge([bundle.root / variant.weights.path])
    for timer in timers:
        timer.warm_up()
    on_host = sampler.backend.name == "onnxruntime cpu"
    return VariantMemory(variant.name, predict_memory(bundle, variant), gauge.grown() if on_host else None)


def _timing(timer: BatchTimer, exact: BatchTimer, bandwidth: float) -> VariantTiming:
    sampler, manifest = timer.sampler, timer.sampler.bundle.autoregressive
    tokens = manifest.decoded_tokens()
    rows, total_bytes, total_passes = [], 0, 0.0
    for index, seconds in timer.block_seconds.items():
        passes = statistics.fmean(timer.passes[index])
        count = step_bytes(sampler.bundle.graph(sampler.variant, index), manifest.blocks[index])
        count = round(count * passes / tokens[index])
        total_bytes, total_passes = total_bytes + count, total_passes + passes
        rows.append(_row(index, seconds, manifest.model.tokens, passes, count, bandwidth))
    rows.append(_row(None, timer.batch_seconds, manifest.model.tokens, total_passes, total_bytes, bandwidth))
    median = statistics.median(timer.batch_seconds)
    spec = manifest.plan_for(sampler.backend.name, sampler.variant.name)
    return VariantTiming(
        variant=sampler.variant.name,
        decoding="plan" if timer.plan.blocks else "sequential",
        batch=manifest.batch,
        rows=tuple(rows),
        images_per_second=manifest.batch / median,
        batch_milliseconds=1000 * median,
        predicted_milliseconds=predicted_milliseconds(timer.plan, spec.costs, tokens) if spec else None,
        error=None if timer is exact else relative_error(timer.sample, exact.sample),
    )


def _row(
    block: int | None, seconds: Sequence[float], tokens: int, passes: float, count: int, bandwidth: float
) -> BlockTiming:
    per_token = [1000 * value / tokens for value in seconds]
    median = statistics.median(per_token)
    quartiles = statistics.quantiles(per_token, n=4) if len(per_token) > 1 else [median] * 3
    spread = (quartiles[2] - quartiles[0]) / median
    return BlockTiming(block, median, spread, passes, count, 1000 * count / bandwidth)
