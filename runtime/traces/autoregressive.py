"""Traces of autoregressive flows: the tokens after every flow block, and blocks decoded with given tokens."""

from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.autoregressive.inversion import run_given
from starflow.runtime.backends.base import Backend, BandwidthProbe, BlockInputs, BlockRunner
from starflow.runtime.backends.block_runner import SequenceRunner
from starflow.runtime.backends.continuous_runner import VelocityRunner
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Block, Variant
from starflow.runtime.plans.decode_plan import Iterated
from starflow.runtime.sampler import Sampler
from starflow.runtime.traces.case import Case
from starflow.runtime.traces.trace import Trace, finite


@dataclass(frozen=True)
class RecordedTrace(Trace):
    """The trace of a backend, with what each block was given.

    Attributes:
        inputs: For every block, the inputs of each batch.
    """

    inputs: dict[int, list[BlockInputs]] = field(default_factory=dict)


def sample_trace(bundle: Bundle, variant: Variant, backend: Backend, case: Case) -> RecordedTrace:
    """Sample the case with the very loop `starflow sample` uses, recording what passes by.

    A block that gives NaN or infinity does not end it: zeros go on in their place, so that the blocks below are seen too.
    """
    recorder = _RecordingBackend(backend)
    sampler = Sampler(bundle, variant, recorder, "sequential")
    sampler.generate(case.noise, case.condition, case.null_condition, guidance=case.guidance)
    tokens = {index: np.concatenate(runner.outputs) for index, runner in recorder.runners.items()}
    return RecordedTrace(tokens, {index: runner.inputs for index, runner in recorder.runners.items()})


def decode_block(runner: BlockRunner, block: Block, inputs: BlockInputs) -> NDArray:
    """One block token by token, [B, T, D] in block order: what it makes is fed back into it."""
    runner.prefill(inputs)
    runner.advance(inputs.noise.shape[1] - block.first_token)
    return _finished(runner, runner.read())


def decode_given(runner: SequenceRunner, block: Block, inputs: BlockInputs, tokens: NDArray) -> NDArray:
    """One block in chunks with every input given, [B, T, D] in block order: nothing it makes is fed back.

    Each position gets the token that truly comes before it, so one pass over a chunk is exact.

    Args:
        runner: A runner of the block.
        block: The block.
        inputs: Its noise, condition and weights.
        tokens: [B, T, D] in block order, the right outputs.
    """
    chunk = chunk_size(tokens.shape[1] - block.first_token, runner.max_chunk)
    return _finished(runner, run_given(runner, inputs, tokens, chunk))


def chunk_size(length: int, max_chunk: int) -> int:
    """Three chunks or more, so that chunks begin on caches that chunks wrote, and the last one is shorter if it can be."""
    return max(1, min(max_chunk, -(-length // 3)))


def _finished(runner: BlockRunner, tokens: NDArray) -> NDArray:
    if not np.isfinite(tokens).all():
        runner.clear()  # or it would reach the next sequence through masked positions
    return tokens


class _RecordingRunner:
    """A `BlockRunner` that keeps what goes through another one."""

    def __init__(self, runner: BlockRunner) -> None:
        self._runner = runner
        self.inputs: list[BlockInputs] = []
        self.outputs: list[NDArray] = []

    def prefill(self, inputs: BlockInputs) -> None:
        self.inputs.append(inputs)
        self._runner.prefill(inputs)

    def advance(self, steps: int) -> None:
        self._runner.advance(steps)

    def iterate(self, segment: Iterated) -> int:
        return self._runner.iterate(segment)

    def read(self) -> NDArray:
        tokens = _finished(self._runner, self._runner.read())
        self.outputs.append(tokens)
        return finite(tokens)

    def clear(self) -> None:
        self._runner.clear()


class _RecordingBackend:
    """A `Backend` whose runners record."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self.name = backend, backend.name
        self.runners: dict[int, _RecordingRunner] = {}

    def runner(self, block: int) -> _RecordingRunner:
        if block not in self.runners:
            self.runners[block] = _RecordingRunner(self._backend.runner(block))
        return self.runners[block]

    def velocity_runner(self) -> VelocityRunner:
        return self._backend.velocity_runner()

    def bandwidth_probe(self) -> BandwidthProbe:
        return self._backend.bandwidth_probe()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The backend's owner frees it."""
