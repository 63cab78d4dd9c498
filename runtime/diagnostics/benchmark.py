"""Variants and plans against each other and against memory bandwidth, for both families of flows.

A single step of an autoregressive flow reads every weight of its block once and the valid part of the caches once; a pass of a
continuous flow reads every weight once. Floor = those bytes divided by the read bandwidth measured between the repetitions.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.autoregressive.students import students_in
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.bytes_read import pass_bytes
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.diagnostics.memory_use import (
    MeasuredMemory,
    MemoryGauge,
    PredictedMemory,
    predict_memory,
)
from starflow.runtime.diagnostics.take_turns import Lap, Times, spread, take_turns
from starflow.runtime.plans.calibrated_decode_plan import predicted_milliseconds
from starflow.runtime.plans.decode_plan import DecodePlan
from starflow.runtime.sampler import Sampler

MOST_PRECISE_FIRST = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")

Unit = Literal["token", "pass"]


@dataclass(frozen=True)
class BlockTiming:
    """One flow block, or the whole flow: medians over the repetitions."""

    block: int | None  # flow block, or None for the whole flow
    # Time per unit (see `Benchmark.unit`): that of a batch, prefill included, over the number of tokens or passes. Tokens are those
    # of the model, also for a flow block with larger ones, so that the blocks add up to the whole flow.
    milliseconds: float
    spread: float  # interquartile range over the median
    passes: float  # runs of the network in a batch, prefill apart; the mean over the repetitions
    # Weights and mean valid cache that a unit reads; with a plan, those of a step times passes per token. A student's pass reads
    # its own weights.
    bytes: int
    floor_milliseconds: float  # bytes / bandwidth

    @property
    def memory_bandwidth_percent(self) -> float:
        """Share of the memory bandwidth that is used; more than 100 means that weights stay in a processor cache."""
        return 100 * self.floor_milliseconds / self.milliseconds


@dataclass(frozen=True)
class VariantTiming:
    """One variant, decoded or integrated in one way."""

    variant: str
    decoding: Literal["sequential", "plan"]  # `sequential` (token by token) or `plan`
    plan: str  # the same in words; for a continuous flow its solver and steps
    batch: int  # images sampled together
    # The flow blocks of an autoregressive flow, the deep block first; the whole flow last.
    rows: tuple[BlockTiming, ...]
    images_per_second: float  # whole batches, prefill included
    batch_milliseconds: float
    # Time of a batch as the plan's calibration predicts it; None without such a prediction.
    predicted_milliseconds: float | None
    # ||x - exact|| / ||exact|| of the batch against the exact one (see `Benchmark.exact`); None for that one itself.
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
    """Memory of one variant, all its graphs open, a batch sampled in every way that was timed."""

    variant: str
    predicted: PredictedMemory
    # Growth of this process; None where the memory is not the host's, or the system does not tell.
    measured: MeasuredMemory | None


@dataclass(frozen=True)
class Benchmark:
    """What was measured, and the memory bandwidth measured beside it."""

    bandwidth: float  # bytes a second
    repetitions: int  # number of timed batches of each row
    # What times and bytes are given for: a token of an autoregressive flow, a pass of a continuous one.
    unit: Unit
    # The variant that errors are relative to: the most precise of those compared, the first of several; decoded token
    # by token, or integrated by its own plan.
    exact: str
    variants: tuple[VariantTiming, ...]  # times
    memory: tuple[VariantMemory, ...]  # bytes, one entry for each sampler


def run_benchmark(
    samplers: Sequence[Sampler],
    *,
    guidance: float,
    repetitions: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Benchmark:
    """Time samplers in turns; one with a decode plan decodes by it and token by token.

    Args:
        samplers: One for each variant to compare, of one bundle and on one device; not used before.
        guidance: Weight, for models that take one; time does not depend on its value.
    """
    contestants: list[_Contestant] = []
    memory, bandwidths = [], list[float]()
    with samplers[0].backend.bandwidth_probe() as probe:
        for sampler in samplers:
            own = _ways(sampler, guidance)
            memory.append(_open(sampler, own))
            contestants += own
        times = take_turns(
            contestants,
            repetitions,
            warm_up=False,
            before_round=lambda: bandwidths.append(probe.measure()),
            progress=progress,
        )
    bandwidth = statistics.median(bandwidths)
    exact = min(
        (contestant for contestant in contestants if not contestant.by_decode_plan),
        key=lambda contestant: MOST_PRECISE_FIRST.index(contestant.sampler.variant.precision),
    )
    timings = [_timing(each, taken, exact, bandwidth) for each, taken in zip(contestants, times, strict=True)]
    unit: Unit = "pass" if isinstance(samplers[0].manifest, ContinuousManifest) else "token"
    return Benchmark(bandwidth, repetitions, unit, exact.sampler.variant.name, tuple(timings), tuple(memory))


def relative_error(found: NDArray, expected: NDArray) -> float:
    """||found - expected|| / ||expected||."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def some_condition(manifest: Manifest) -> tuple[NDArray | None, NDArray | None]:
    """A condition and null condition of one batch: what they say does not change a step's time, and a plan's passes little."""
    spec = manifest.conditioning
    if spec.kind == "features":
        zeros = np.zeros((spec.tokens, spec.width), np.float32)
        return zeros, zeros
    return np.arange(manifest.batch) % spec.num_classes if spec.num_classes else None, None


class _Contestant:
    """Samples the same batch over and over in one way; noise and conditions are the same for all contestants."""

    sample: NDArray  # what came out last

    def __init__(self, sampler: Sampler, guidance: float) -> None:
        self.sampler, manifest = sampler, sampler.manifest
        self.by_decode_plan = isinstance(sampler.plan, DecodePlan) and bool(sampler.plan.blocks)
        self._guidance = guidance if manifest.guided else 0.0
        self._inputs = (sampler.noise(manifest.batch), *some_condition(manifest))
        # How often each block's network ran, prefill apart; a value for each repetition.
        self.passes: dict[int, list[int]] = {}

    def __call__(self, lap: Lap) -> None:
        self.sample = self.sampler.generate(
            *self._inputs,
            guidance=self._guidance,
            # A block that is the identity has no passes.
            on_block=lambda block, _: lap(block if block in self.passes else None),
            on_passes=lambda block, count: self.passes.setdefault(block, []).append(count),
        )


def _ways(sampler: Sampler, guidance: float) -> list[_Contestant]:
    given = _Contestant(sampler, guidance)
    if not given.by_decode_plan:
        return [given]
    return [_Contestant(Sampler(sampler.bundle, sampler.variant, sampler.backend, "sequential"), guidance), given]


def _open(sampler: Sampler, contestants: Sequence[_Contestant]) -> VariantMemory:
    """Sample a batch in each way, which opens the sampler's graphs, and watch the memory that takes."""
    bundle, variant = sampler.bundle, sampler.variant
    gauge = MemoryGauge([bundle.path(variant.weights)])
    for contestant in contestants:
        contestant(lambda part: None)
        contestant.passes.clear()
    on_host = sampler.backend.name == "onnxruntime cpu"
    return VariantMemory(variant.name, predict_memory(bundle, variant), gauge.grown() if on_host else None)


def _timing(contestant: _Contestant, times: Times, exact: _Contestant, bandwidth: float) -> VariantTiming:
    sampler, manifest, predicted = contestant.sampler, contestant.sampler.manifest, None
    passes = {block: statistics.fmean(counts) for block, counts in contestant.passes.items()}
    each_pass = pass_bytes(manifest, sampler.variant)
    rows: list[BlockTiming] = []
    if isinstance(manifest, ContinuousManifest):
        units = total_passes = sum(passes.values())
        total_bytes = each_pass[0]
    else:
        units, decoded = float(manifest.model.tokens), manifest.decoded_tokens()
        for index, count in passes.items():
            share = manifest.blocks[index].token_shape(manifest.model)[0] / units  # 1 unless its patches are its own
            read = _bytes_read(sampler, index, count, each_pass[index]) / decoded[index] * share
            rows.append(_row(index, times.parts[index], units, count, round(read), bandwidth))
        total_passes, total_bytes = sum(passes.values()), sum(row.bytes for row in rows)
        spec = manifest.plan_for(sampler.backend.name, sampler.variant.name)
        if spec and isinstance(sampler.plan, DecodePlan):
            predicted = predicted_milliseconds(sampler.plan, spec.costs, decoded)
    rows.append(_row(None, times.whole, units, total_passes, total_bytes, bandwidth))
    return VariantTiming(
        variant=sampler.variant.name,
        decoding="sequential" if sampler.decoding == "sequential" else "plan",
        plan=sampler.decoding,
        batch=manifest.batch,
        rows=tuple(rows),
        images_per_second=1000 * manifest.batch / times.milliseconds,
        batch_milliseconds=times.milliseconds,
        predicted_milliseconds=predicted,
        error=None if contestant is exact else relative_error(contestant.sample, exact.sample),
    )


def _bytes_read(sampler: Sampler, block: int, passes: float, each_pass: int) -> float:
    """Bytes that a batch reads at least in the passes of a flow block, the first of which may be a student's."""
    manifest = sampler.manifest
    if isinstance(manifest, AutoregressiveManifest):
        manifest = manifest.run_by(sampler.variant.name)
    for student in students_in(manifest, sampler.plan):
        if student.block == block:
            return student.network.weight_bytes + (passes - 1) * each_pass
    return passes * each_pass


def _row(
    block: int | None, seconds: Sequence[float], units: float, passes: float, read: int, bandwidth: float
) -> BlockTiming:
    milliseconds = 1000 * statistics.median(seconds) / units
    return BlockTiming(block, milliseconds, spread(seconds), passes, read, 1000 * read / bandwidth)
