"""The other direction: from data back to the noise that makes it, with the density it is given on the way.

A step graph samples: x = z sigma + mu, with mu and sigma from the tokens before. Given all tokens of x, one pass with z = 0
yields mu and one with z = 1 yields sigma + mu; then z = (x - mu) / sigma is what the block above made. No pass depends on
another token's result, so a block takes two passes over all its tokens, and weights are those of the step graphs.

    log p(x) = log p(z of the top block) - sum over blocks and tokens of log sigma      (TARFlow, eq. 5; STARFlow, eq. 2)
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.autoregressive.sampling_loop import block_inputs
from starflow.runtime.backends.base import Backend
from starflow.runtime.backends.block_runner import BlockInputs
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest, Block
from starflow.runtime.conditions import Conditions
from starflow.runtime.plain.errors import BackendError
from starflow.runtime.plain.guidance import Guidance


@dataclass(frozen=True)
class InvertedBlock:
    """One flow block on given data; everything in block order.

    Attributes:
        block: The block.
        inputs: What it takes to make these tokens: their noise, and the condition.
        tokens: [B, T, D] what it makes.
        log_sigma: [B, T] float64, log sigma summed over channels; 0 for a token that passes unchanged.
    """

    block: Block
    inputs: BlockInputs
    tokens: NDArray
    log_sigma: NDArray


def invert_batch(
    backend: Backend, manifest: AutoregressiveManifest, x: NDArray, conditions: Conditions, chunk: int | None = None
) -> Iterator[InvertedBlock]:
    """Go through the flow blocks from the data upwards, without guidance.

    Args:
        backend: Runs the blocks.
        manifest: The bundle's.
        x: [B, T, D] float32, raster order, of exactly the exported batch.
        conditions: Of the B images.
        chunk: Most tokens of a pass; None takes what the bundle allows.

    Raises:
        BackendError: a value is not finite.
    """
    for block in manifest.blocks:
        if block.identity:
            continue
        tokens = x[:, ::-1] if block.reversed else x
        inputs = block_inputs(manifest, block, tokens, conditions, Guidance(0.0), 1.0)
        runner = backend.block_runner(block.index)
        mu, above = (
            runner.decode_given(replace(inputs, noise=np.full_like(tokens, value)), tokens, chunk)
            for value in (0.0, 1.0)
        )
        first = block.first_token  # a token before it passes unchanged
        sigma = above[:, first:] - mu[:, first:]
        with np.errstate(all="ignore"):
            noise = np.concatenate([tokens[:, :first], (tokens[:, first:] - mu[:, first:]) / sigma], axis=1)
            log_sigma = np.pad(np.log(sigma.astype(np.float64)).sum(axis=2), ((0, 0), (first, 0)))
        if not (np.isfinite(noise).all() and np.isfinite(log_sigma).all()):
            runner.clear()
            raise BackendError(f"flow block {block.index} produced NaN or infinity while data was inverted")
        yield InvertedBlock(block, replace(inputs, noise=noise), tokens, log_sigma)
        x = noise[:, ::-1] if block.reversed else noise
