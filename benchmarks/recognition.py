"""What a classifier recognises of a bundle's samples, and how fast they are made: variants, plans and families side by side.

Every variant made for the CPU samples by the plan that runs where none is stored, and by its calibrated plan if it has one, all
from the same noise. They take turns, a round of images each, so that speeds of different bundles compare; images per second are
medians over the rounds. Needs `python examples/digits/fetch.py`, and bundles of digits models, exported at one --batch.

Examples:
  python -m benchmarks.recognition digits.bundle --guidance 2
  python -m benchmarks.recognition digits.bundle digits-cfm.bundle --variant cpu-fp32
"""

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from benchmarks.digit_classifier import classify, load_classifier
from numpy.typing import NDArray

from starflow.runtime import Sampler
from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.diagnostics.benchmark import relative_error
from starflow.runtime.plans.integration_plan import default_plan
from starflow.runtime.sampler import Plan

ROUND = 50  # images


@dataclass
class Way:
    """One way to sample a bundle, and what came of it so far."""

    sampler: Sampler
    bundle: str
    first: "Way | None"  # of its bundle; None for that one itself
    seconds: list[float] = field(default_factory=list)
    parts: list[NDArray] = field(default_factory=list)

    def run(self, noise: NDArray, labels: NDArray, guidance: float) -> None:
        start = time.perf_counter()
        self.parts.append(self.sampler.generate(noise, labels, guidance=guidance))
        self.seconds.append(time.perf_counter() - start)

    def figures(self, read: NDArray, asked: NDArray) -> dict[str, object]:
        """The row of the table; `read` is what the classifier reads in the samples [N]."""
        x = np.concatenate(self.parts)
        return {
            "bundle": self.bundle,
            "variant": self.sampler.variant.name,
            "decoding": self.sampler.decoding,
            "recognised": float((read == asked).mean()),
            "error": relative_error(x, np.concatenate(self.first.parts)) if self.first else None,
            "images_per_second": ROUND / statistics.median(self.seconds),
        }


def ways(path: Path, variant: str | None, stack: ExitStack) -> list[Way]:
    """The ways to sample a bundle, the exact one of its first variant first."""
    manifest = Bundle.open(path).manifest
    names = [each.name for each in manifest.variants if each.lowering == "cpu" and variant in (None, each.name)]
    plain: Plan = default_plan() if isinstance(manifest, ContinuousManifest) else SEQUENTIAL
    found: list[Way] = []
    for name in names:
        for plan in (plain, "auto"):
            sampler = stack.enter_context(Sampler.open(path, variant=name, plan=plan))
            if plan != "auto" or sampler.plan != plain:
                found.append(Way(sampler, path.name, found[0] if found else None))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="bundle")
    parser.add_argument("--variant", help="this one only (default: all made for the CPU)")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument(
        "--count", type=int, default=1000, help=f"samples of each, in rounds of {ROUND} (default: 1000)"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    asked = np.arange(arguments.count - arguments.count % ROUND) % 10
    with ExitStack() as stack:
        found = [way for path in arguments.bundles for way in ways(path, arguments.variant, stack)]
        for way in found:  # opens sessions
            way.sampler.generate(way.sampler.noise(1), [0], guidance=arguments.guidance)
        noise = found[0].sampler.noise(len(asked), seed=1)
        for start in range(0, len(asked), ROUND):
            part = slice(start, start + ROUND)
            for way in found:
                way.run(noise[part].reshape(-1, *way.sampler.noise_shape), asked[part], arguments.guidance)
        network = load_classifier()
        images = [way.sampler.to_images(np.concatenate(way.parts))[..., 0] for way in found]
        rows = [way.figures(classify(network, each), asked) for way, each in zip(found, images, strict=True)]
        batches = sorted({way.sampler.manifest.batch for way in found})
    if arguments.json:
        print(
            json.dumps({"guidance": arguments.guidance, "count": len(asked), "batch": batches, "rows": rows}, indent=1)
        )
        return
    print(f"{len(asked)} digits each, guidance {arguments.guidance:g}, batch {', '.join(map(str, batches))}")
    width = 2 + max(len(way.bundle) for way in found)
    print(f"{'bundle':<{width}}{'variant':<12}{'decoding':<32}{'recognised':>10}{'error':>9}{'images/s':>10}")
    for row in rows:
        error = "" if row["error"] is None else f"{row['error']:.1e}"
        print(
            f"{row['bundle']:<{width}}{row['variant']:<12}{row['decoding']:<32}{row['recognised']:>10.1%}{error:>9}"
            f"{row['images_per_second']:>10.1f}"
        )


if __name__ == "__main__":
    main()
