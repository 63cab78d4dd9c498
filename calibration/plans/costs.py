"""What a pass over several tokens costs on this backend, next to a single step."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from starflow.calibration.plans.convergence import BlockProbe
from starflow.runtime.diagnostics.take_turns import Lap, Times, take_turns
from starflow.runtime.plans.calibrated_decode_plan import BlockCost, RunCost
from starflow.runtime.plans.decode_plan import Chunk

STEPS = 16  # single steps timed together
PASSES = 4  # passes timed together


def measure_costs(probes: Mapping[int, BlockProbe], widths: Sequence[int], repetitions: int) -> tuple[BlockCost, ...]:
    """Time single steps, and passes of every width, in every flow block: in turns, medians.

    What is timed is what decoding does: getting inputs to a pass and outputs from it counts.
    """
    works = [partial(_round, probe, [w for w in widths if 1 < w <= probe.count]) for probe in probes.values()]
    times = take_turns(works, repetitions)
    return tuple(block_cost(probe, found) for probe, found in zip(probes.values(), times, strict=True))


def block_cost(probe: BlockProbe, times: Times) -> BlockCost:
    """The costs of a flow block, from the times of its parts: `prefill`, `steps`, and a width for its passes."""
    milliseconds = times.part_milliseconds
    prefill, steps = milliseconds.pop("prefill"), milliseconds.pop("steps")
    return BlockCost(
        block=probe.block.index,
        prefill_milliseconds=prefill,
        step_milliseconds=steps / min(STEPS, probe.count),
        runs=tuple(RunCost(tokens=width, milliseconds=time / PASSES) for width, time in milliseconds.items()),
    )


def _round(probe: BlockProbe, widths: Sequence[int], lap: Lap) -> None:
    """Run everything that is timed of a flow block once, in the middle of the sequence."""
    runner, steps = probe.runner, min(STEPS, probe.count)

    def timed(part: object, tokens: int, work: Callable[[], object]) -> None:
        runner.seek(probe.block.prefix + (probe.count - tokens) // 2)
        runner.fetch("previous")  # reading a token waits for a device
        lap(None)
        work()
        runner.fetch("previous")
        lap(part)

    timed("prefill", probe.count, lambda: runner.prefill(probe.inputs[0]))
    timed("steps", steps, lambda: runner.advance(steps))
    for width in widths:
        timed(width, width, partial(runner.iterate, Chunk(tokens=width, passes=PASSES)))
