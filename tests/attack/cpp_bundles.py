"""Damage bundles and open each with Python and with C++: both refuse it, or both make the same data; nothing crashes.

Run it with the library of the preset `sanitize` (`make cpp-attack`) to see reads outside of arrays as well.

Examples:
  python -m tests.attack.cpp_bundles --cases 10000
  python -m tests.attack.cpp_bundles --only 1234       one damaged bundle
"""

import argparse
import hashlib
import math
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from starflow.runtime.plain.errors import StarflowError
from starflow.runtime.sampler import Sampler
from tests.attack.bundles import SHAPES, damage_one_file, ways_to_sample
from tests.attack.forked import Ended, attempt, freeze, import_ahead
from tests.attack.honest import make_honest, one_thread
from tests.attack.watch import Watch
from tests.cpp_library import BuildSkippedError, CppError, CppSampler, library

KINDS = ("class", "velocity", "captions", "latents", "shapes")
INTERNAL = 5  # STARFLOW_INTERNAL
# What C++ refuses at once and Python where it matters, and the other way round. Each is told in docs/cpp.md.
VERIFIED = ("its content is not what was exported",)  # C++ compares every file, Python those of the shape it opens
STRICTER_CPP = ("bytes, the manifest says", "has no cpu variant")
IN_PYTHON_ALONE = ("tokenizer", "engine", "build.json")


class Way(NamedTuple):
    """How a bundle is opened."""

    kind: str
    variant: str
    shape: tuple[int, int] | None
    verify: bool

    @classmethod
    def of(cls, kind: str, how: str) -> "Way":
        """From a name such as `verified sample cpu-fp32` or `sample 8x8`."""
        verified, _, what = how.rpartition("sample")
        shape = next((shape for shape in SHAPES.get(kind, ()) if what.strip() == "x".join(map(str, shape))), None)
        return cls(kind, "" if shape else what.strip(), shape, bool(verified))


class Honest(NamedTuple):
    """What is the same in every damaged copy of a bundle, so that both sides are asked the same."""

    noise: NDArray[np.float32]
    condition: NDArray | None
    data_shape: tuple[int, ...]
    text_tokens: int


def _honest(root: Path, way: Way) -> Honest:
    with Sampler.open(root, variant=way.variant or None, shape=way.shape, threads=1) as sampler:
        manifest, noise_shape = sampler.manifest, sampler.noise_shape
    draw = np.random.default_rng(0)
    given, condition = manifest.conditioning, None
    if given.kind == "features":
        condition = draw.standard_normal((2, given.tokens, given.width), np.float32)
    elif given.kind != "none":
        condition = np.array([1, 2])
    noise = draw.standard_normal((2, *noise_shape), np.float32)
    return Honest(noise, condition, tuple(manifest.model.data_shape), manifest.text.tokens if manifest.text else 0)


def _digest(data: NDArray, images: NDArray) -> str:
    return hashlib.sha256(data.tobytes() + images.tobytes()).hexdigest()


def in_python(root: Path, way: Way, honest: Honest) -> Callable[[], str]:
    """Samples with Python; the digest of the data and the pixels."""

    def sample() -> str:
        with Sampler.open(root, variant=way.variant or None, shape=way.shape, verify=way.verify, threads=1) as sampler:
            data = sampler.generate(honest.noise, honest.condition)
            if data.shape[1:] != honest.data_shape:
                raise StarflowError("the data have another shape")
            return _digest(data, sampler.to_images(data))

    return sample


def in_cpp(root: Path, way: Way, honest: Honest) -> Callable[[], str]:
    """Samples with C++."""

    def sample() -> str:
        height, width = way.shape or (0, 0)
        options = {"variant": way.variant, "height": height, "width": width, "threads": 1, "verify": int(way.verify)}
        try:
            with CppSampler(root, honest.data_shape, **options) as sampler:
                sizes = sampler.sizes
                if (sizes["noise_values"], sizes["data_values"]) != (
                    honest.noise[0].size,
                    math.prod(honest.data_shape),
                ):
                    raise StarflowError("the data have another shape")
                data = sampler.generate(honest.noise, honest.condition)
                found = _digest(data, sampler.to_images(data))
                if honest.text_tokens:
                    _encode(sampler, honest.text_tokens)
                return found
        except CppError as error:
            if error.status == INTERNAL:
                raise RuntimeError(str(error)) from None
            raise StarflowError(str(error)) from None

    return sample


def _encode(sampler: CppSampler, tokens: int) -> None:
    """Features of a text: Python makes them of captions only, so this must merely not crash."""
    try:
        sampler.encode_tokens([1] * tokens, [1] * tokens)
    except CppError as error:
        if error.status == INTERNAL:
            raise


def judge(way: Way, python: Ended, cpp: Ended, honest: str) -> tuple[str, str]:
    """Outcome of a case, and a line about it."""
    if cpp.how == python.how == "abort":  # in ONNX Runtime, which both call: docs/security.md
        return "ends both", ""
    if cpp.how not in ("done", "refused"):
        return cpp.how, f"{cpp.told[-600:]} {cpp.printed[-2000:]!r}"
    if cpp.how == "refused" and ("\n" in cpp.told or not cpp.told.isprintable()):
        return "message", repr(cpp.told)
    if python.how not in ("done", "refused"):
        return ("refused" if cpp.how == "refused" else "same"), ""  # a fault of Python, which `tests.attack` counts
    if python.how == cpp.how == "refused":
        return "refused", ""
    if cpp.how == "refused":
        stricter = any(reason in cpp.told for reason in STRICTER_CPP + (VERIFIED if way.verify else ()))
        return ("refused by C++ alone" if stricter else "only C++ refuses"), cpp.told
    if python.how == "refused":
        own = any(word in python.told for word in IN_PYTHON_ALONE)
        return ("refused by Python alone" if own else "only Python refuses"), python.told
    if python.told == cpp.told:
        return ("same" if cpp.told == honest else "another model"), ""
    return "differs", ""


ALLOWED = ("refused", "same", "another model", "refused by C++ alone", "refused by Python alone", "ends both")


class CppBundles:
    """Bundles of some kinds, each damaged in one file."""

    def __init__(self, artifacts: Path, scratch: Path, kinds: tuple[str, ...], seed: int) -> None:
        self._scratch, self._seed = scratch, seed
        self._ways: list[tuple[Path, Way, Honest, str]] = []
        for kind in kinds:
            root = artifacts / kind / "bundle"
            for how in ways_to_sample(kind):
                way = Way.of(kind, how)
                honest = _honest(root, way)
                import_ahead(in_python(root, way, honest))
                self._ways.append((root, way, honest, ""))
        library()
        freeze()
        for index, (root, way, honest, _) in enumerate(self._ways):
            python, cpp = (attempt(do(root, way, honest), 60) for do in (in_python, in_cpp))
            if python.how != "done" or python.told != cpp.told:
                raise RuntimeError(f"{way}: the whole bundle: {python.told[-500:]} and {cpp} ")
            self._ways[index] = (root, way, honest, cpp.told)

    def case(self, number: int) -> tuple[str, str]:
        """Outcome of one case, and a line about it."""
        draw: Generator = np.random.default_rng([99, self._seed, number])
        source, way, honest, expected = self._ways[draw.integers(len(self._ways))]
        folder = self._scratch / f"cpp-{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        root = folder / "bundle"
        shutil.copytree(source, root, copy_function=os.link)
        note, _, _ = damage_one_file(draw, root)
        python, cpp = (attempt(do(root, way, honest)) for do in (in_python, in_cpp))
        outcome, told = judge(way, python, cpp, expected)
        shutil.rmtree(folder, ignore_errors=True)
        return outcome, f"{way.kind} {way.variant}{way.shape or ''}{' verified' if way.verify else ''}; {note}: {told}"


def main() -> int:
    """Damage, open, and print the counts; 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, metavar="N", help="number of bundles (default: 10,000)")
    parser.add_argument("--only", type=int, metavar="CASE", help="one case")
    parser.add_argument("--kinds", nargs="+", default=KINDS, metavar="KIND", help="kinds of bundles (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage (default: 0)")
    parser.add_argument("--first", type=int, default=0, metavar="CASE", help="number of the first case (default: 0)")
    parser.add_argument(
        "--minutes", type=float, default=90, help="time after which no further case is tried (default: 90)"
    )
    arguments = parser.parse_args()
    one_thread()
    memory = Path("/dev/shm")
    scratch = Path(tempfile.mkdtemp(prefix="starflow-cpp-", dir=memory if os.access(memory, os.W_OK) else None))
    numbers = range(arguments.first, arguments.first + arguments.cases)
    if arguments.only is not None:
        numbers = range(arguments.only, arguments.only + 1)
    end = time.monotonic() + 60 * arguments.minutes
    counts: Counter[str] = Counter()
    try:
        make_honest(scratch / "honest", tuple(arguments.kinds))
        bundles = CppBundles(scratch / "honest", scratch, tuple(arguments.kinds), arguments.seed)
        with Watch("C++ bundles", len(numbers), "cases") as watch:
            for number in numbers:
                if time.monotonic() > end:
                    break
                outcome, told = bundles.case(number)
                counts[outcome] += 1
                watch.case("cpp", str(number), "same" if outcome in ALLOWED else outcome, told)
    except BuildSkippedError as skipped:
        print(skipped)
        return 0
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if counts.total() < len(numbers):
        print(f"{counts.total():,} of {len(numbers):,} cases: the time is over")
    for outcome, count in counts.most_common():
        print(f"{outcome:24} {count:,}")
    return int(any(outcome not in ALLOWED for outcome in counts))


if __name__ == "__main__":
    sys.exit(main())
