"""What one way of running a bundle makes of given noise: the tokens after every flow block.

Noise and conditions are drawn from a seed, so every run of every route sees the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
from starflow.runtime.networks.caption_encoder import encode_once
from starflow.runtime.plans.decode_plan import Iterated
from starflow.runtime.sampler import Sampler

CAPTIONS = ("a red apple", "two cats", "a sailboat", "the moon", "a blue car", "snow", "an old tree", "blue")


@dataclass(frozen=True)
class Case:
    """What is sampled: N images, a multiple of the bundle's batch.

    Attributes:
        noise: [N, *noise_shape] float32, as `starflow sample --seed` draws it.
        condition: Labels [N] int64, condition tokens [N, m, width] float32, or None.
        null_condition: Null condition tokens [m, width], where the condition is tokens.
        guidance: Weight.
        seed: What all of it was drawn from.
    """

    noise: NDArray[np.float32]
    condition: NDArray | None
    null_condition: NDArray | None
    guidance: float
    seed: int


def draw_case(
    bundle: Bundle,
    images: int | None = None,
    seed: int = 0,
    guidance: float | None = None,
    conditions: Callable[[int], tuple[NDArray | None, NDArray | None]] | None = None,
) -> Case:
    """Noise and conditions for at least `images` images (by default one batch), in whole batches.

    Args:
        bundle: The bundle.
        images: Their number.
        seed: Of the noise, and of conditions that are drawn.
        guidance: Weight; None takes 1 where the bundle takes guidance.
        conditions: Gives the conditions and the null condition of so many images, in place of `usual_conditions`.
    """
    manifest = bundle.manifest
    count = -(-(images or manifest.batch) // manifest.batch) * manifest.batch
    condition, null = conditions(count) if conditions else usual_conditions(bundle, count, seed)
    weight = guidance if guidance is not None else float(manifest.guided)
    # Which variant draws does not matter, and no session is made for it.
    with Sampler.open(
        bundle.root, backend="onnxruntime", variant=manifest.variants[0].name, shape=bundle.shape
    ) as sampler:
        return Case(sampler.noise(count, seed), condition, null, weight, seed)


def usual_conditions(bundle: Bundle, count: int, seed: int) -> tuple[NDArray | None, NDArray | None]:
    """Conditions of `count` images, and the null condition where it is tokens.

    Every class occurs in turn. A bundle with a text encoder is given captions: a trained model need not be calm far from
    what it was trained on. Other condition tokens are standard normal, and so are the null tokens, because a null
    condition of zeros would hide an exchange of rows.
    """
    manifest, spec = bundle.manifest, bundle.manifest.conditioning
    if spec.kind == "none":
        return None, None
    if spec.kind != "features":
        return np.arange(count) % spec.num_classes, None
    if manifest.text:
        features, null = encode_once(bundle, CAPTIONS)
        return features[np.arange(count) % len(CAPTIONS)], null
    generator = np.random.default_rng([seed, count])
    condition = generator.standard_normal((count, spec.tokens, spec.width), np.float32)
    return condition, generator.standard_normal((spec.tokens, spec.width), np.float32)


@dataclass(frozen=True)
class Trace:
    """A whole sample, block by block.

    Attributes:
        tokens: [N, T, D] float32 after each flow block by its index, in the block's own order; what is not finite
            is kept.
    """

    tokens: dict[int, NDArray]


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


def finite(tokens: NDArray) -> NDArray:
    """The tokens with zeros for what is not finite, so that what comes after can still be judged."""
    return np.nan_to_num(tokens, nan=0.0, posinf=0.0, neginf=0.0)


def nudged(case: Case) -> Case:
    """The same case with every noise value moved to the next float32: the smallest disturbance there is."""
    return replace(case, noise=np.nextafter(case.noise, np.float32(np.inf)))


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
