"""Traces of autoregressive flows: tokens after every flow block, and blocks that decode given tokens."""

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
from starflow.runtime.family import Request
from starflow.runtime.plain.batches import batches
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.traces.case import Case, Trace


@dataclass(frozen=True)
class RecordedTrace(Trace):
    """The trace of a backend, with the inputs of each block."""

    inputs: dict[int, list[BlockInputs]] = field(default_factory=dict)  # the inputs of each batch, by block


def sample_trace(bundle: Bundle, variant: Variant, backend: Backend, case: Case) -> RecordedTrace:
    """Sample a case token by token, with the loop of `starflow sample`, and record the tokens.

    NaN and infinity do not end the loop: the next block gets zeros instead, so that all blocks are recorded.
    """
    loop = AutoregressiveLoop(bundle, variant, backend, SEQUENTIAL)
    request = Request([Guidance(case.guidance)] * bundle.manifest.batch)
    loop.check(request)
    conditions = case.conditions(bundle.manifest.conditioning)
    tokens: dict[int, list[NDArray]] = {}
    inputs: dict[int, list[BlockInputs]] = {}
    for _, index in batches(len(case.noise), bundle.manifest.batch):
        for made in loop.blocks(case.noise[index], conditions.part(index), request):
            tokens.setdefault(made.block.index, []).append(made.tokens)
            inputs.setdefault(made.block.index, []).append(made.inputs)
    return RecordedTrace({index: np.concatenate(parts) for index, parts in tokens.items()}, inputs)


def decode_block(runner: BlockRunner, block: Block, inputs: BlockInputs) -> NDArray:
    """Decode one block token by token, [B, T, D] in block order: its outputs are its next inputs."""
    runner.prefill(inputs)
    runner.advance(inputs.noise.shape[1] - block.first_token)
    return _finished(runner, runner.read())


def decode_given(runner: BlockRunner, block: Block, inputs: BlockInputs, tokens: NDArray) -> NDArray:
    """Decode given tokens of one block in chunks, see `BlockRunner.decode_given`."""
    chunk = chunk_size(tokens.shape[1] - block.first_token, runner.max_chunk)
    return _finished(runner, runner.decode_given(inputs, tokens, chunk))


def chunk_size(length: int, max_chunk: int) -> int:
    """A size for three or more chunks, so that chunks start on caches that chunks wrote, and the last is shorter if possible."""
    return max(1, min(max_chunk, -(-length // 3)))


def _finished(runner: BlockRunner, tokens: NDArray) -> NDArray:
    if not np.isfinite(tokens).all():
        runner.clear()  # or NaN would reach the next sequence through masked positions
    return tokens
