"""What a calibration says of the times it recorded."""

import pytest

from starflow.calibration.weights.command import times_in_words
from starflow.runtime.bundle.manifest import BatchTiming, Timing


@pytest.mark.parametrize(
    ("steps", "verdict"),
    [
        ((0.5, 0.6), "--variant auto takes cpu-int8 on this processor"),
        ((1.3, 0.6), "--variant auto takes cpu-int8 on this processor with --batch 1, else cpu-fp32"),
        ((1.3, 0.96), "cpu-int8 does not pay on this processor, and --variant auto stays with cpu-fp32"),
    ],
)
def test_a_verdict_for_who_runs_it(steps: tuple[float, float], verdict: str) -> None:
    batches = tuple(BatchTiming(batch=batch, step=step, chunk=0.7) for batch, step in zip((8, 1), steps, strict=True))
    lines = times_in_words("cpu-int8", "cpu-fp32", Timing(processor="Z80", batches=batches))
    assert lines[-1] == verdict
    assert lines[0] == f"batch 8: a step takes {steps[0]:.2f} of the time of cpu-fp32, a chunk 0.70"
