"""Traces of autoregressive flows: the tokens after every flow block, and blocks decoded with given tokens."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.autoregressive.loop import AutoregressiveLoop
from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL
from starflow.runtime.backends.base import Backend
from starflow.runtime.backends.block_runner import BlockInputs, BlockRunner
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.conditions import encode_conditions
from starflow.runtime.family import Request
from starflow.runtime.plain.batches import batches
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.traces.case import Case
from starflow.runtime.traces.trace import Trace


@dataclass(frozen=True)
class RecordedTrace(Trace):
    """The trace of a backend, with what each block was given.

    Attributes:
        inputs: For every block, the inputs of each batch.
    """

    inputs: dict[int, list[BlockInputs]] = field(default_factory=dict)


def sample_trace(bundle: Bundle, variant: Variant, backend: Backend, case: Case) -> RecordedTrace:
    """Sample the case, token by token, with the very loop `starflow sample` uses, recording what passes by.

    A block that gives NaN or infinity does not end it: zeros go on in their place, so that the blocks below are seen too.
    """
    loop = AutoregressiveLoop(bundle, variant, backend, SEQUENTIAL)
    request = Request(Guidance(case.guidance))
    loop.check(request)
    count = len(case.noise)
    conditions = encode_conditions(
        bundle.manifest.conditioning, count, case.condition, case.null_condition, guided=case.guidance > 0
    )
    tokens: dict[int, list[NDArray]] = {}
    inputs: dict[int, list[BlockInputs]] = {}
    for _, index in batches(count, bundle.manifest.batch):
        for made in loop.blocks(case.noise[index], conditions.part(index), request, finite=False):
            tokens.setdefault(made.block.index, []).append(made.tokens)
            inputs.setdefault(made.block.index, []).append(made.inputs)
    return RecordedTrace({index: np.concatenate(parts) for index, parts in tokens.items()}, inputs)


def decode_block(runner: BlockRunner, block: Block, inputs: BlockInputs) -> NDArray:
    """One block token by token, [B, T, D] in block order: what it makes is fed back into it."""
    runner.prefill(inputs)
    runner.advance(inputs.noise.shape[1] - block.first_token)
    return _finished(runner, runner.read())


def decode_given(runner: BlockRunner, block: Block, inputs: BlockInputs, tokens: NDArray) -> NDArray:
    """One block in chunks with every input given, see `BlockRunner.decode_given`."""
    chunk = chunk_size(tokens.shape[1] - block.first_token, runner.max_chunk)
    return _finished(runner, runner.decode_given(inputs, tokens, chunk))


def chunk_size(length: int, max_chunk: int) -> int:
    """Three chunks or more, so that chunks begin on caches that chunks wrote, and the last one is shorter if it can be."""
    return max(1, min(max_chunk, -(-length // 3)))


def _finished(runner: BlockRunner, tokens: NDArray) -> NDArray:
    if not np.isfinite(tokens).all():
        runner.clear()  # or it would reach the next sequence through masked positions
    return tokens
