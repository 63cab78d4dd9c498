"""The sampling loop, written once for every backend.

From the top block down, each block turns its noise into tokens, one after the other; what a block makes is the noise of
the block below. (STARFlow, section 3; TARFlow, section 2.2.)
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.base import Backend, BlockInputs, BlockRunner
from starflow.runtime.bundle.manifest import Block, Manifest
from starflow.runtime.conditions import Conditions
from starflow.runtime.plain.errors import BackendError
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.decode_plan import DecodePlan, Segment, Steps

TOKENS_PER_REPORT = 16  # how many steps run between two progress reports

OnBlock = Callable[[int, NDArray], None]
OnTokens = Callable[[int], None]
OnPasses = Callable[[int, int], None]

SEQUENTIAL = DecodePlan(blocks=())


def sample_batch(
    backend: Backend,
    manifest: Manifest,
    noise: NDArray,
    conditions: Conditions,
    guidance: Guidance,
    *,
    attention_temperature: float = 1.0,
    plan: DecodePlan = SEQUENTIAL,
    on_block: OnBlock = lambda index, tokens: None,
    on_tokens: OnTokens = lambda count: None,
    on_passes: OnPasses = lambda block, count: None,
) -> NDArray:
    """Sample one batch of exactly the exported size.

    Args:
        backend: Runs the blocks.
        manifest: The bundle's.
        noise: [B, T, D] float32, raster order, already scaled by the prior.
        conditions: Of the B images.
        guidance: What is asked for.
        attention_temperature: See `Sampler.generate`.
        plan: How each block is decoded.
        on_block: Called after every block with its index and its tokens [B, T, D].
        on_tokens: Called with the number of tokens just decoded.
        on_passes: Called after every block with its index and how often its network ran, prefill apart.

    Returns:
        [B, T, D] float32, raster order.
    """
    x = noise
    for block in reversed(manifest.blocks):
        if not block.identity:
            z = x[:, ::-1] if block.reversed else x
            runner = backend.runner(block.index)
            runner.prefill(block_inputs(manifest, block, z, conditions, guidance, attention_temperature))
            segments = plan.segments(block.index, block.capacity - block.prefix)
            on_passes(block.index, sum(_decode(runner, segment, on_tokens) for segment in segments))
            tokens = runner.read()
            if not np.isfinite(tokens).all():
                position = int(np.argwhere(~np.isfinite(tokens).all(axis=(0, 2)))[0, 0])
                runner.clear()
                raise BackendError(f"flow block {block.index} produced NaN or infinity at token {position}")
            x = tokens[:, ::-1] if block.reversed else tokens
        on_block(block.index, x)
    return np.ascontiguousarray(x)


def _decode(runner: BlockRunner, segment: Segment, on_tokens: OnTokens) -> int:
    """Decode a segment; how often the network ran."""
    if not isinstance(segment, Steps):
        passes = runner.iterate(segment)
        on_tokens(segment.tokens)
        return passes
    for start in range(0, segment.tokens, TOKENS_PER_REPORT):
        count = min(TOKENS_PER_REPORT, segment.tokens - start)
        runner.advance(count)
        on_tokens(count)
    return segment.tokens


def block_inputs(
    manifest: Manifest,
    block: Block,
    noise: NDArray,
    conditions: Conditions,
    guidance: Guidance,
    attention_temperature: float,
) -> BlockInputs:
    """Inputs of one block; where it is guided, [conditional, null] rows."""
    batch = manifest.batch
    guided = block.rows == 2 * batch
    top = block.index == len(manifest.blocks) - 1
    weight = guidance.weight if top or not guidance.top_only else 0.0
    temperature = np.full(block.rows, attention_temperature, np.float32)
    if manifest.model.family == "tarflow":
        temperature[:batch] = 1.0  # TARFlow's temperature acts on its unguided branch only
    condition, label = None, None
    if block.prefix and conditions.tokens is not None and conditions.null_tokens is not None:
        condition = np.concatenate([conditions.tokens, conditions.null_tokens]) if guided else conditions.tokens
    if conditions.labels is not None:
        null = np.full(batch, conditions.null_label, np.int64)
        label = np.concatenate([conditions.labels, null]) if guided else conditions.labels
    scalars = {
        "guidance": np.full(batch, weight, np.float32),
        "guidance_scale": np.full(batch, weight * guidance.scale, np.float32),
        "guidance_shift": np.full(batch, weight * guidance.shift, np.float32),
        "guidance_anneal": np.full(batch, guidance.annealed, np.float32),
        "inverse_temperature": 1.0 / temperature,
    }
    return BlockInputs(noise, condition, label, scalars)
