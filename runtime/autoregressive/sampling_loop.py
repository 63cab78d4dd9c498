"""The sampling loop, once for all backends.

From the deep block down, each block turns its noise into tokens, one after the other. The tokens of a block are the noise of the
block below. (STARFlow, section 3; TARFlow, section 2.2.)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.autoregressive.students import student_of, student_tokens
from starflow.runtime.autoregressive.tokens import from_block, to_block
from starflow.runtime.backends.base import Backend
from starflow.runtime.backends.block_runner import BlockInputs, BlockRunner
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest, Block
from starflow.runtime.conditions import Conditions
from starflow.runtime.family import Request
from starflow.runtime.plain.errors import NotFiniteError, StarflowError
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.decode_plan import Chunk, DecodePlan, Segment, Steps, Student

TOKENS_PER_REPORT = 16  # number of steps between two progress reports

OnTokens = Callable[[int], None]

SEQUENTIAL = DecodePlan(blocks=())


@dataclass(frozen=True)
class SampledBlock:
    """One flow block of a sampled batch."""

    block: Block
    inputs: BlockInputs  # its inputs; the noise may be a view of the tokens of the block above
    tokens: NDArray  # [B, T, D] float32, its own tokens in block order
    natural: NDArray  # the same as tokens of the model in raster order; a view where that is possible
    passes: int  # number of runs of its network, prefill not counted; a run of its student counts as one


def sample_blocks(
    backend: Backend,
    manifest: AutoregressiveManifest,
    noise: NDArray,
    conditions: Conditions,
    request: Request,
    plan: DecodePlan,
    on_tokens: OnTokens = lambda count: None,
    *,
    finite: bool = True,
) -> Iterator[SampledBlock]:
    """Sample one batch of the exported size, one flow block after the other.

    Args:
        noise: [B, T, D] float32, tokens of the model in raster order, already scaled by the prior.
        on_tokens: Called with the number of tokens just decoded.
        finite: Whether NaN and infinity are errors; if not, the next block gets zeros instead.

    Raises:
        NotFiniteError: a block produced NaN or infinity.
    """
    x = noise
    for block in reversed(manifest.blocks):
        if block.identity:
            continue
        z = to_block(x, manifest.model, block)
        inputs = block_inputs(manifest, block, z, conditions, request.guidance, request.attention_temperature)
        student = plan.students.get(block.index)
        guess = _by_student(manifest, inputs, block, conditions, request) if student else None
        if guess is not None and student and not student.passes:
            runner, tokens, passes = None, guess, 1
            on_tokens(student.tokens)
        else:
            runner = backend.block_runner(block.index)
            with _cleared_on_error(runner):
                runner.prefill(inputs)
                segments = plan.segments(block.index, block.capacity - block.prefix)
                passes = sum(_decode(runner, segment, on_tokens, guess) for segment in segments)
            tokens = runner.read()
        made = SampledBlock(block, inputs, tokens, from_block(tokens, manifest.model, block), passes)
        x = made.natural
        if not np.isfinite(x).all():
            if runner:
                runner.clear()  # or NaN would reach the next sequence through masked positions
            if finite:
                position = int(np.argwhere(~np.isfinite(made.tokens).all(axis=(0, 2)))[0, 0])
                raise NotFiniteError(f"flow block {block.index} produced NaN or infinity at token {position}")
            x = np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
        yield made


@contextmanager
def _cleared_on_error(runner: BlockRunner) -> Iterator[None]:
    """Clear the caches if decoding ends early: nobody has seen whether they hold NaN, which would reach the next sequence."""
    try:
        yield
    except BaseException:
        with suppress(StarflowError):  # after a fault of the device, which is being raised
            runner.clear()
        raise


def _by_student(
    manifest: AutoregressiveManifest, inputs: BlockInputs, block: Block, conditions: Conditions, request: Request
) -> NDArray:
    """The tokens [B, T, D] that the student of a block makes. A token that passes the block unchanged does so here, too."""
    assert request.run_network is not None
    weights, first = inputs.scalars["guidance"], block.first_token
    made = student_tokens(request.run_network, student_of(manifest, block.index), inputs.noise, conditions, weights)
    return np.concatenate([inputs.noise[:, :first], made[:, first:]], axis=1)


def _decode(runner: BlockRunner, segment: Segment, on_tokens: OnTokens, guess: NDArray | None) -> int:
    """Decode a segment and return the number of passes; `guess` [B, T, D] is what a student made."""
    if isinstance(segment, Student):
        assert guess is not None
        passes = runner.iterate(Chunk(tokens=segment.tokens, passes=segment.passes), guess[:, -segment.tokens :])
        on_tokens(segment.tokens)
        return 1 + passes
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
    manifest: AutoregressiveManifest,
    block: Block,
    noise: NDArray,
    conditions: Conditions,
    guidance: Sequence[Guidance],
    attention_temperature: float,
) -> BlockInputs:
    """Inputs of one block, with [conditional, null] rows if it is guided, by the guidance of each image."""
    batch = manifest.batch
    guided = block.rows == 2 * batch
    weights = np.array([each.weight_at(block.index, len(manifest.blocks)) for each in guidance], np.float32)
    temperature = np.full(block.rows, attention_temperature, np.float32)
    if manifest.model.family == "tarflow":
        temperature[:batch] = 1.0  # TARFlow applies it to the unguided branch only
    condition, label = None, None
    if block.prefix and conditions.tokens is not None and conditions.null_tokens is not None:
        condition = np.concatenate([conditions.tokens, conditions.null_tokens]) if guided else conditions.tokens
    if conditions.labels is not None:
        null = np.full(batch, conditions.null_label, np.int64)
        label = np.concatenate([conditions.labels, null]) if guided else conditions.labels
    scalars = {
        "guidance": weights,
        "guidance_scale": weights * np.array([each.scale for each in guidance], np.float32),
        "guidance_shift": weights * np.array([each.shift for each in guidance], np.float32),
        "guidance_anneal": np.array([each.annealed for each in guidance], np.float32),
        "inverse_temperature": 1.0 / temperature,
    }
    return BlockInputs(noise, condition, label, scalars)
