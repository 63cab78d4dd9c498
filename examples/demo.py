"""The whole way in one go: export the shipped digits checkpoint, sample with guidance, draw the picture, time it.

Example: make demo
"""

import time
from pathlib import Path

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.runtime.benchmark import run_benchmark
from starflow.runtime.images import grid, write_png

CHECKPOINT = Path(__file__).parent / "digits" / "checkpoint"
OUT = Path("out/demo")
GUIDANCE = 2.0
COUNT, COLUMNS = 100, 10


def main() -> None:
    bundle, picture = OUT / "bundle", OUT / "samples.png"
    start = time.perf_counter()
    manifest = export_checkpoint(CHECKPOINT, bundle, ExportOptions(batch=10), replace=True)
    print(f"exported {CHECKPOINT.name} ({manifest.model.parameters:,} parameters) to {bundle}")
    print(f"  {', '.join(variant.name for variant in manifest.variants)} in {time.perf_counter() - start:.1f} s")

    with Sampler.open(bundle) as sampler:
        labels = [index % 10 for index in range(COUNT)]
        start = time.perf_counter()
        images = sampler.sample(labels, guidance=GUIDANCE, seed=0)
        seconds = time.perf_counter() - start
        write_png(picture, grid(images, COLUMNS))
        print(f"sampled {COUNT} digits with guidance {GUIDANCE:g}: {seconds:.1f} s, {COUNT / seconds:.1f} images/s")
        total = run_benchmark([sampler], guidance=GUIDANCE, repetitions=5).variants[0].total
        print(
            f"  {total.milliseconds:.2f} ms per token and batch of {manifest.batch}, {total.bytes / 2**20:.1f} MiB read per"
            f" token, {total.percent_of_floor:.0f} % of the memory floor"
        )
    print(f"look at {picture}")


if __name__ == "__main__":
    main()
