"""Time of a token in C++ and in Python, and where its processor time goes in C++.

`make cpp` builds `starflow-run`, which `perf` observes (Debian's `linux-perf`; without it there is no account). Two runs of
different lengths are compared, so that opening the bundle does not count.

Example: python -m benchmarks.cpp_host_time runtime/shipped/digits --batch 1
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from starflow.runtime import Sampler

ROOT = Path(__file__).resolve().parent.parent
FREQUENCY = 5000  # samples of a second
MOST_FUNCTIONS = 8


def main() -> int:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="batch size to run (default: 1)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of an operator (default: 1)")
    parser.add_argument("--repetitions", type=int, default=20, metavar="N", help="timed repetitions (default: 20)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds in turn of each side (default: 3)")
    parser.add_argument("--run", type=Path, default=ROOT / "build/cpp/release/starflow-run", help="the command")
    arguments = parser.parse_args()
    if not arguments.run.exists():
        print(f"{arguments.run}: is missing; build it with `make cpp`", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        command = [arguments.run, arguments.bundle, "--count", arguments.batch, "--batch", arguments.batch]
        command += ["--threads", arguments.threads, "--out", f"{folder}/x.png", "--latents", f"{folder}/x.npy"]
        words = [str(word) for word in command]
        times: dict[str, list[float]] = {"C++": [], "Python": []}
        for _ in range(arguments.rounds):
            tokens, seconds = run_cpp(words, arguments.repetitions)
            times["C++"].append(seconds)
            times["Python"].append(run_python(arguments, arguments.repetitions))
        print(f"{tokens} tokens of a batch of {arguments.batch}; medians of {arguments.repetitions} repetitions")
        for side, rounds in times.items():
            each = ", ".join(f"{1e6 * seconds / tokens:.1f}" for seconds in rounds)
            print(f"{side:8} {1e6 * statistics.median(rounds) / tokens:8.1f} us a token   (rounds: {each})")
        if not shutil.which("perf"):
            print("perf is not installed, so there is no account")
            return 0
        account(words, Path(folder), arguments.repetitions, tokens)
    return 0


def run_cpp(words: list[str], repetitions: int) -> tuple[int, float]:
    """Tokens of a batch, and the median seconds of it."""
    command = [*words, "--bench", str(repetitions), "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return round(1e6 * told["median_seconds"] / told["microseconds_per_token"]), told["median_seconds"]


def run_python(arguments: argparse.Namespace, repetitions: int) -> float:
    """Median seconds of the same in Python."""
    with Sampler.open(arguments.bundle, batch=arguments.batch, threads=arguments.threads) as sampler:
        noise = sampler.noise(arguments.batch, 0)
        sampler.generate(noise)
        found = []
        for _ in range(repetitions):
            start = time.perf_counter()
            sampler.generate(noise)
            found.append(time.perf_counter() - start)
    return statistics.median(found)


def account(words: list[str], folder: Path, repetitions: int, tokens: int) -> None:
    """Print the microseconds of a token by library, and by function of the library's own."""
    short, long = (profile(words, folder, number) for number in (repetitions, 4 * repetitions))
    long.subtract(short)
    sampled = 3 * repetitions * tokens
    microseconds = 1e6 / FREQUENCY / sampled  # of a token, for each sample
    libraries: Counter[str] = Counter()
    for (library, _), samples in long.items():
        libraries[library] += samples
    print(f"processor time of a token, of {sampled:,} tokens")
    for library, samples in libraries.most_common():
        if samples > 0.0005 * libraries.total():
            share = 100 * samples / libraries.total()
            print(f"{library:32} {microseconds * samples:8.2f} us {share:6.1f} %")
    own = [(name, samples) for (library, name), samples in long.most_common() if library.startswith("libstarflow")]
    for name, samples in own[:MOST_FUNCTIONS]:
        print(f"  {name[:60]:60} {microseconds * samples:8.2f} us")


def profile(words: list[str], folder: Path, repetitions: int) -> Counter[tuple[str, str]]:
    """Samples of a run by library and function."""
    recorded = folder / f"{repetitions}.perf"
    record = [
        "perf",
        "record",
        "--quiet",
        "--event",
        "cpu-clock:u",
        "--freq",
        str(FREQUENCY),
        "--output",
        str(recorded),
    ]
    subprocess.run([*record, "--", *words, "--bench", str(repetitions)], capture_output=True, check=True)
    report = ["perf", "report", "--stdio", "--no-children", "--sort", "dso,symbol", "--show-nr-samples"]
    told = subprocess.run([*report, "--input", str(recorded)], capture_output=True, text=True, check=True).stdout
    found: Counter[tuple[str, str]] = Counter()
    for line in told.splitlines():
        row = re.match(r"\s*[\d.]+%\s+(\d+)\s+(\S+)\s+\[.\]\s+(.*?)\s*$", line)
        if row:
            found[row[2], row[3]] += int(row[1])
    return found


if __name__ == "__main__":
    sys.exit(main())
