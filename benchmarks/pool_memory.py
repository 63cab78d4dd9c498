"""Memory of samplers that share their weights, beside samplers that do not.

Each row is a process of its own that opens samplers, samples one image with each, and reads its resident memory.

Example: python -m benchmarks.pool_memory digits.bundle --samplers 1 2 4
"""

import argparse
import subprocess
import sys
from pathlib import Path

SAMPLING = """
import sys
from pathlib import Path
from starflow.runtime import Sampler, SamplerPool
path, kind, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
if kind == "pool":
    pool = SamplerPool.open(path, size=count, threads=1)
    samplers = pool._samplers
else:
    samplers = [Sampler.open(path, threads=1) for _ in range(count)]
for sampler in samplers:
    sampler.generate(sampler.noise(1), ["a red apple"] if sampler.manifest.text else None)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--samplers", type=int, nargs="+", default=[1, 2, 4], help="numbers of samplers (default: 1 2 4)"
    )
    arguments = parser.parse_args()
    print(f"{'samplers':>8} {'pool, MiB':>10} {'each its own, MiB':>18}")
    for count in arguments.samplers:
        pool, own = (measured(arguments.bundle, kind, count) for kind in ("pool", "own"))
        print(f"{count:>8} {pool:>10.0f} {own:>18.0f}")


def measured(bundle: Path, kind: str, count: int) -> float:
    """MiB of memory of a process with so many samplers."""
    command = [sys.executable, "-c", SAMPLING, str(bundle), kind, str(count)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
