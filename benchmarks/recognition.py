"""Do quantised weights and decode plans change what digits say: recognition of every variant's samples, from the same noise.

Needs `python examples/digits/fetch.py` and an exported, calibrated bundle of the digits model.

Example: python -m benchmarks.recognition digits.bundle --guidance 2
"""

import argparse
import json
from pathlib import Path

import numpy as np
from benchmarks.digit_classifier import classify, load_classifier

from starflow.runtime import Sampler
from starflow.runtime.benchmark import relative_error
from starflow.runtime.bundle import Bundle
from starflow.runtime.images import to_uint8
from starflow.runtime.sampling_loop import SEQUENTIAL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    network = load_classifier()
    asked = np.arange(arguments.count) % 10
    exact, rows = None, []
    names = [variant.name for variant in Bundle.open(arguments.bundle).manifest.variants if variant.lowering == "cpu"]
    for name in names:
        for plan in ("sequential", "auto"):
            with Sampler.open(arguments.bundle, variant=name, plan=plan) as sampler:
                if plan == "auto" and sampler.plan == SEQUENTIAL:
                    continue
                x = sampler.generate(sampler.noise(arguments.count, seed=1), asked, guidance=arguments.guidance)
                pixels = to_uint8(x / sampler.manifest.image.scale + sampler.manifest.image.shift)
            exact = x if exact is None else exact
            right = classify(network, pixels[..., 0]) == asked
            rows.append({"variant": name, "plan": plan, "recognised": right.mean(), "error": relative_error(x, exact)})
    if arguments.json:
        print(json.dumps({"guidance": arguments.guidance, "count": arguments.count, "rows": rows}, indent=1))
        return
    print(f"{arguments.count} digits, guidance {arguments.guidance:g}")
    for row in rows:
        how = "by its plan" if row["plan"] == "auto" else "token by token"
        print(f"{row['variant']:<14}{how:<16}{row['recognised']:>7.1%} recognised, error {row['error']:.1e}")


if __name__ == "__main__":
    main()
