"""Time per token against the memory floor, per flow block and for whole images.

A single step has to read every weight of its block once and the valid part of the caches once. Floor = those bytes divided by
the read bandwidth measured between the repetitions. Whatever is compared runs interleaved in one process; figures are medians.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.bundle_summary import cache_bytes
from starflow.runtime.conditions import Conditions, encode_conditions
from starflow.runtime.decode_plan import DecodePlan
from starflow.runtime.guidance import Guidance
from starflow.runtime.manifest import Block, GraphSpec, Manifest
from starflow.runtime.plan_spec import predicted_milliseconds
from starflow.runtime.sampler import Sampler
from starflow.runtime.sampling_loop import SEQUENTIAL, sample_batch


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
        error: Of the plan's samples against sequential ones, ||x - sequential|| / ||sequential||.
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
    """Time samplers against each other, interleaved; one with a plan decodes by it and token by token.

    Args:
        samplers: One for each variant to compare, all on one device.
        guidance: Weight; time does not depend on its value, only on the exported rows.
        repetitions: How often each decodes one batch.
        progress: Called with repetitions done and in total.
    """
    timers = []
    for sampler in samplers:
        timers.append(_Timer(sampler, SEQUENTIAL, guidance))
        if sampler.plan.blocks:
            timers.append(_Timer(sampler, sampler.plan, guidance, timers[-1]))
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
    """Decodes batches with one sampler and one plan, and notes how long each block took."""

    def __init__(self, sampler: Sampler, plan: DecodePlan, guidance: float, sequential: "_Timer | None" = None) -> None:
        manifest = sampler.manifest
        self.sampler, self.manifest, self.plan, self.sequential = sampler, manifest, plan, sequential
        self.guidance = Guidance(guidance if manifest.guidance else 0.0)
        shape = (manifest.batch, manifest.model.tokens, manifest.model.token_dim)
        self.noise = np.random.default_rng(0).standard_normal(shape, np.float32)
        self.conditions = _conditions(manifest)
        self.block_seconds: dict[int, list[float]] = {b.index: [] for b in reversed(manifest.blocks) if not b.identity}
        self.batch_seconds: list[float] = []
        self.passes: dict[int, list[int]] = {index: [] for index in self.block_seconds}

    def clear(self) -> None:
        for seconds in self.block_seconds.values():
            seconds.clear()
        self.batch_seconds.clear()
        for passes in self.passes.values():
            passes.clear()

    def run(self) -> None:
        last = [time.perf_counter()]

        def after_block(index: int, _: object) -> None:
            now = time.perf_counter()
            if index in self.block_seconds:
                self.block_seconds[index].append(now - last[0])
            last[0] = now

        start = last[0]
        self.sample = sample_batch(
            self.sampler.backend,
            self.manifest,
            self.noise,
            self.conditions,
            self.guidance,
            plan=self.plan,
            on_block=after_block,
            on_passes=lambda block, count: self.passes[block].append(count),
        )
        self.batch_seconds.append(time.perf_counter() - start)

    def result(self, bandwidth: float) -> VariantTiming:
        rows, total_bytes, total_passes = [], 0, 0.0
        tokens = self.manifest.decoded_tokens()
        for index, seconds in self.block_seconds.items():
            block = self.manifest.blocks[index]
            passes = statistics.fmean(self.passes[index])
            count = step_bytes(self.sampler.bundle.graph(self.sampler.variant, index), block)
            count = round(count * passes / tokens[index])
            total_bytes, total_passes = total_bytes + count, total_passes + passes
            rows.append(_timing(index, seconds, self.manifest.model.tokens, passes, count, bandwidth))
        rows.append(_timing(None, self.batch_seconds, self.manifest.model.tokens, total_passes, total_bytes, bandwidth))
        median = statistics.median(self.batch_seconds)
        spec = self.manifest.plan_for(self.sampler.backend.name, self.sampler.variant.name)
        return VariantTiming(
            variant=self.sampler.variant.name,
            decoding="plan" if self.sequential else "sequential",
            batch=self.manifest.batch,
            rows=tuple(rows),
            images_per_second=self.manifest.batch / median,
            batch_milliseconds=1000 * median,
            predicted_milliseconds=predicted_milliseconds(self.plan, spec.costs, tokens) if spec else None,
            error=relative_error(self.sample, self.sequential.sample) if self.sequential else None,
        )


def relative_error(found: NDArray, expected: NDArray) -> float:
    """||found - expected|| / ||expected||."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _timing(
    block: int | None, seconds: Sequence[float], tokens: int, passes: float, count: int, bandwidth: float
) -> BlockTiming:
    per_token = [1000 * value / tokens for value in seconds]
    median = statistics.median(per_token)
    quartiles = statistics.quantiles(per_token, n=4) if len(per_token) > 1 else [median] * 3
    spread = (quartiles[2] - quartiles[0]) / median
    return BlockTiming(block, median, spread, passes, count, 1000 * count / bandwidth)


def _conditions(manifest: Manifest) -> Conditions:
    """Some condition of the right shape: what it says does not change a step's time, and a plan's passes little."""
    spec = manifest.conditioning
    if spec.kind == "features":
        zeros = np.zeros((spec.tokens, spec.width), np.float32)
        return encode_conditions(spec, manifest.batch, zeros, zeros, guided=True)
    labels = np.arange(manifest.batch) % spec.num_classes if spec.num_classes else None
    return encode_conditions(spec, manifest.batch, labels, None, guided=True)
