"""Batches decoded by one sampler in one way, and how long each took."""

import time

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.autoregressive.sampling_loop import sample_blocks
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.conditions import Conditions, encode_conditions
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.decode_plan import DecodePlan
from starflow.runtime.sampler import Sampler


class BatchTimer:
    """Decodes the same batch over and over, and notes the time of each block.

    Args:
        sampler: What decodes.
        plan: How.
        guidance: Weight, if the model has guidance.

    Attributes:
        block_seconds: A value for each repetition, by flow block, the deep one first.
        batch_seconds: A value for each repetition.
        passes: How often each block's network ran, prefill apart; a value for each repetition.
        sample: What came out last, [B, T, D]. Noise and conditions are the same for all timers of a bundle.
    """

    sample: NDArray

    def __init__(self, sampler: Sampler, plan: DecodePlan, guidance: float) -> None:
        manifest = sampler.bundle.autoregressive
        self.sampler, self.plan = sampler, plan
        self._guidance = Guidance(guidance if manifest.guidance else 0.0)
        shape = (manifest.batch, manifest.model.tokens, manifest.model.token_dim)
        self._noise = np.random.default_rng(0).standard_normal(shape, np.float32)
        self._conditions = some_conditions(manifest)
        self.block_seconds: dict[int, list[float]] = {b.index: [] for b in reversed(manifest.blocks) if not b.identity}
        self.batch_seconds: list[float] = []
        self.passes: dict[int, list[int]] = {index: [] for index in self.block_seconds}

    def warm_up(self) -> None:
        """Decode a batch that does not count: it opens the blocks."""
        self.run()
        self.batch_seconds.clear()
        for block, seconds in self.block_seconds.items():
            seconds.clear()
            self.passes[block].clear()

    def run(self) -> None:
        """Decode a batch."""
        start = last = time.perf_counter()
        for made in sample_blocks(
            self.sampler.backend,
            self.sampler.bundle.autoregressive,
            self._noise,
            self._conditions,
            self._guidance,
            plan=self.plan,
        ):
            now = time.perf_counter()
            self.block_seconds[made.block.index].append(now - last)
            self.passes[made.block.index].append(made.passes)
            self.sample, last = made.natural, now
        self.batch_seconds.append(time.perf_counter() - start)


def some_conditions(manifest: AutoregressiveManifest) -> Conditions:
    """Conditions of the right shape: what they say does not change a step's time, and a plan's passes little."""
    spec = manifest.conditioning
    if spec.kind == "features":
        zeros = np.zeros((spec.tokens, spec.width), np.float32)
        return encode_conditions(spec, manifest.batch, zeros, zeros, guided=True)
    labels = np.arange(manifest.batch) % spec.num_classes if spec.num_classes else None
    return encode_conditions(spec, manifest.batch, labels, None, guided=True)
