"""Time per token against the memory floor, per flow block and for whole images.

A single step has to read every weight of its block once and the valid part of the caches once. Floor = those bytes divided by
the read bandwidth measured between the repetitions. Whatever is compared runs interleaved in one process; figures are medians.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from starflow.runtime.bundle_summary import cache_bytes
from starflow.runtime.conditions import Conditions, encode_conditions
from starflow.runtime.guidance import Guidance
from starflow.runtime.manifest import Block, GraphSpec, Manifest
from starflow.runtime.sampler import Sampler
from starflow.runtime.sampling_loop import sample_batch


@dataclass(frozen=True)
class BlockTiming:
    """Steps of one flow block: medians over the repetitions, one value per repetition being the mean over its tokens.

    Attributes:
        block: Flow block, or None for the whole flow.
        milliseconds: Time per token: of the block's whole sequence, prefill included, over the number of tokens.
        spread: Interquartile range over the median.
        bytes: Weights and mean valid cache a step reads.
        floor_milliseconds: bytes / bandwidth.
    """

    block: int | None
    milliseconds: float
    spread: float
    bytes: int
    floor_milliseconds: float

    @property
    def percent_of_floor(self) -> float:
        """100 is as fast as memory allows; more means the weights stayed in a cache."""
        return 100 * self.floor_milliseconds / self.milliseconds


@dataclass(frozen=True)
class VariantTiming:
    """One variant: its blocks from the top down, the whole flow last."""

    variant: str
    batch: int
    rows: tuple[BlockTiming, ...]
    images_per_second: float

    @property
    def total(self) -> BlockTiming:
        return self.rows[-1]


@dataclass(frozen=True)
class Benchmark:
    """What was measured, and the bandwidth beside it."""

    bandwidth: float
    repetitions: int
    variants: tuple[VariantTiming, ...]


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
    """Time samplers against each other, interleaved.

    Args:
        samplers: One for each variant to compare, all on one device.
        guidance: Weight; time does not depend on its value, only on the exported rows.
        repetitions: How often each decodes one batch.
        progress: Called with repetitions done and in total.
    """
    timers = [_Timer(sampler, guidance) for sampler in samplers]
    bandwidths = []
    with samplers[0].backend.bandwidth_probe() as probe:
        for timer in timers:
            timer.run()  # loads sessions and warms up
            timer.clear()
        for repetition in range(repetitions):
            bandwidths.append(probe.measure())
            for timer in timers:
                timer.run()
            progress(repetition + 1, repetitions)
    bandwidth = statistics.median(bandwidths)
    return Benchmark(bandwidth, repetitions, tuple(timer.result(bandwidth) for timer in timers))


class _Timer:
    """Decodes batches with one sampler and notes how long each block took."""

    def __init__(self, sampler: Sampler, guidance: float) -> None:
        manifest = sampler.manifest
        self.sampler, self.manifest = sampler, manifest
        self.guidance = Guidance(guidance if manifest.guidance else 0.0)
        shape = (manifest.batch, manifest.model.tokens, manifest.model.token_dim)
        self.noise = np.random.default_rng(0).standard_normal(shape, np.float32)
        self.conditions = _conditions(manifest)
        self.block_seconds: dict[int, list[float]] = {b.index: [] for b in reversed(manifest.blocks) if not b.identity}
        self.batch_seconds: list[float] = []

    def clear(self) -> None:
        for seconds in self.block_seconds.values():
            seconds.clear()
        self.batch_seconds.clear()

    def run(self) -> None:
        last = [time.perf_counter()]

        def after_block(index: int, _: object) -> None:
            now = time.perf_counter()
            if index in self.block_seconds:
                self.block_seconds[index].append(now - last[0])
            last[0] = now

        start = last[0]
        sample_batch(
            self.sampler.backend, self.manifest, self.noise, self.conditions, self.guidance, on_block=after_block
        )
        self.batch_seconds.append(time.perf_counter() - start)

    def result(self, bandwidth: float) -> VariantTiming:
        rows, total_bytes = [], 0
        tokens = self.manifest.model.tokens
        for index, seconds in self.block_seconds.items():
            block = self.manifest.blocks[index]
            count = step_bytes(self.sampler.bundle.graph(self.sampler.variant, index), block)
            total_bytes += count
            rows.append(_timing(index, seconds, tokens, count, bandwidth))
        rows.append(_timing(None, self.batch_seconds, tokens, total_bytes, bandwidth))
        images = self.manifest.batch / statistics.median(self.batch_seconds)
        return VariantTiming(self.sampler.variant.name, self.manifest.batch, tuple(rows), images)


def _timing(block: int | None, seconds: Sequence[float], steps: int, count: int, bandwidth: float) -> BlockTiming:
    per_step = [1000 * value / steps for value in seconds]
    median = statistics.median(per_step)
    quartiles = statistics.quantiles(per_step, n=4) if len(per_step) > 1 else [median] * 3
    return BlockTiming(block, median, (quartiles[2] - quartiles[0]) / median, count, 1000 * count / bandwidth)


def _conditions(manifest: Manifest) -> Conditions:
    """Some condition of the right shape: what it says does not change the time."""
    spec = manifest.conditioning
    if spec.kind == "features":
        zeros = np.zeros((spec.tokens, spec.width), np.float32)
        return encode_conditions(spec, manifest.batch, zeros, zeros, guided=True)
    return encode_conditions(spec, manifest.batch, None, None, guided=True)
