"""How long a new variant takes against the one it was made from, on this machine.

Single steps and short chunks, in the middle of the sequence, of both variants in turns in one process. One flow block after the
other is opened, so memory holds one of them twice.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from starflow.calibration.weights.ladders import CHUNK
from starflow.runtime.backends.block_runner import BlockRunner
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import BatchTiming, Timing, Variant
from starflow.runtime.diagnostics.take_turns import Lap, Times, take_turns_for
from starflow.runtime.plain.processor import processor

SECONDS, ROUNDS = 1.0, (15, 151)  # for a flow block, and rounds that this may take
STEPS = 6  # single steps timed together
CHUNKS = 3  # chunks timed together


def time_variant(
    places: Sequence[Bundle], source: str, made: Sequence[Variant], threads: int, waiting: Callable[[], None]
) -> Timing:
    """Time a variant at every batch size, at the default shape.

    Args:
        places: The bundle at each shape and batch size; the new variant does not have to be in its manifest.
        source: Name of the variant to compare with.
        made: The new variant, at each of these places.
        threads: Threads within an operator; 0 measures how many are fastest, for each variant.
        waiting: Called before every flow block.
    """
    timings = []
    for bundle, variant in zip(places, made, strict=True):
        if bundle.place.shape is not None:
            continue
        tokens = bundle.autoregressive.decoded_tokens()
        steps, chunks = [0.0, 0.0], [0.0, 0.0]  # of a batch, by variant: the source and the new one
        for block, count in tokens.items():
            waiting()
            times = _time_block(bundle, (bundle.variant(source, ""), variant), block, threads)
            for which, found in enumerate(times):
                milliseconds = found.part_milliseconds
                steps[which] += count * milliseconds["step"]
                chunks[which] += count * milliseconds["chunk"]
        batch = bundle.manifest.batch
        timings.append(BatchTiming(batch=batch, step=steps[1] / steps[0], chunk=chunks[1] / chunks[0]))
    return Timing(processor=processor(), batches=tuple(timings))


def _time_block(bundle: Bundle, variants: Sequence[Variant], block: int, threads: int) -> list[Times]:
    with ExitStack() as stack:
        backends = [stack.enter_context(OnnxRuntimeBackend(bundle, each, threads=threads)) for each in variants]
        return take_turns_for([_Timed(backend.block_runner(block)) for backend in backends], SECONDS, ROUNDS)


class _Timed:
    """Runs a few single steps, and a few chunks."""

    def __init__(self, runner: BlockRunner) -> None:
        block = runner.block
        self._runner, decoded = runner, block.capacity - block.prefix
        self._chunk, self._steps = min(CHUNK, decoded), min(STEPS, max(1, decoded - 1))
        self._start = block.prefix + max(0, decoded - max(self._chunk, self._steps + 1)) // 2

    def __call__(self, lap: Lap) -> None:
        self._runner.seek(self._start)
        if self._start + 1 + self._steps <= self._runner.block.capacity:
            self._runner.advance(1)  # wakes the threads
        lap(None)
        self._runner.advance(self._steps)
        lap("step")
        self._runner.seek(self._start)
        for _ in range(CHUNKS):
            self._runner.run(self._chunk)
        lap("chunk")
