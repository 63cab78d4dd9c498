"""Threads of ONNX Runtime: one, all, the measured choice; and workers that stay awake for 1 ms, and for 40, its own default.

Whole batches, interleaved in one process, medians. Every flow block has a session and workers of its own: those of
the block before disturb the next one for as long as they stay awake.

Example: python -m benchmarks.threads digits.bundle --batch 8 --repetitions 20
"""

import argparse
import os
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from starflow.runtime import Sampler
from starflow.runtime.backends.onnxruntime import session as onnxruntime_session

OWN_SPIN = 40_000  # microseconds
LONG_PAUSE = 0.1  # seconds, after which all workers sleep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", default="cpu-fp32")
    parser.add_argument("--plan", default="sequential")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument(
        "--pause", type=float, default=LONG_PAUSE, help="seconds before a batch, in which workers and cores sleep"
    )
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    usual = onnxruntime_session.spin_microseconds
    ways = {
        "1 thread": (1, usual),
        f"{cores} threads": (cores, usual),
        "measured choice": (0, usual),
        "measured choice, awake for 1 ms": (0, lambda _: 1000),
        f"{cores} threads, awake for 40 ms": (cores, lambda _: OWN_SPIN),
    }
    if arguments.pause < LONG_PAUSE:  # its workers would take cores from the next batch
        ways.popitem()
    with ExitStack() as stack:
        samplers = {}
        for name, (threads, spin) in ways.items():
            with patch.object(onnxruntime_session, "spin_microseconds", spin):
                sampler = Sampler.open(
                    arguments.bundle,
                    variant=arguments.variant,
                    threads=threads,
                    plan=arguments.plan,
                    batch=arguments.batch,
                )
                samplers[name] = stack.enter_context(sampler)
                _sample(sampler)  # opens the sessions
        seconds: dict[str, list[float]] = {name: [] for name in samplers}
        for _ in range(arguments.repetitions):
            for name, sampler in samplers.items():
                time.sleep(arguments.pause)
                seconds[name].append(_sample(sampler))
    for name, times in seconds.items():
        quartiles = statistics.quantiles(times, n=4)
        print(
            f"{name:<32}{1000 * quartiles[1]:8.1f} ms a batch ({1000 * quartiles[0]:.1f} to {1000 * quartiles[2]:.1f})"
        )


def _sample(sampler: Sampler) -> float:
    """Seconds of one batch with guidance, where the model takes it."""
    manifest = sampler.bundle.autoregressive
    spec, count = manifest.conditioning, manifest.batch
    condition: NDArray | None = None
    null: NDArray | None = None
    if spec.kind == "features":
        condition, null = np.zeros((2, count, spec.tokens, spec.width), np.float32)
        null = null[0]
    elif spec.num_classes:
        condition = np.arange(count) % spec.num_classes
    noise = sampler.noise(count)
    start = time.perf_counter()
    sampler.generate(noise, condition, null, guidance=1.0 if manifest.guidance else 0.0)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
