"""How close samples of digits come to real digits as a distribution, and how long an image takes: bundles, variants and plans side by side.

Recognition alone rewards samples that all look the same, so beside it stand

* the Fréchet distance between the classifier's logits of samples and of the held-out digits, and as its floor that of as many
  training digits;
* the standard deviation within a class: the root of the mean variance of a pixel, in [-1, 1], over the samples of one class,
  and over the classes; and that of real digits;
* bits/dim of the held-out digits with the training noise, by inversion through the bundle (of autoregressive flows on pixels);
* the error against the same noise decoded token by token by the first variant of the bundle.

Milliseconds are those of one batch, a column for each batch size of a bundle, medians of ways that take turns. Needs
`python examples/digits/fetch.py`, and bundles of digits models, the ones to compare exported at the same batch sizes.

Examples:
  python -m benchmarks.digits_distribution digits.bundle coarse.bundle --guidance 2
  python -m benchmarks.digits_distribution digits.bundle --variant cpu-fp32 cpu-int8 --json
  python -m benchmarks.digits_distribution digits.bundle --plan student student+1 student+2
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.digit_classifier import load_classifier, logits_of
from numpy.typing import NDArray

from starflow.calibration.frechet import frechet_distance
from starflow.runtime import Sampler
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.diagnostics.benchmark import relative_error
from starflow.runtime.diagnostics.take_turns import take_turns
from starflow.runtime.plain.bits_per_dim import bits_per_dim

DIGITS = Path("out/digits/digits.npz")
SEED = 1


@dataclass(frozen=True)
class Distribution:
    """What a set of digits looks like as a whole."""

    recognised: float  # share that the classifier reads as the class asked for
    frechet: float  # to the held-out digits
    within_class_std: float


class Judge:
    """Compares digits with the held-out ones."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._network = load_classifier()
        self._real = logits_of(self._network, images)

    def distribution(self, images: NDArray[np.uint8], labels: NDArray) -> Distribution:
        """The figures of digits [N, 28, 28] of classes [N]."""
        logits = logits_of(self._network, images)
        return Distribution(
            float((logits.argmax(1) == labels).mean()),
            frechet_distance(logits, self._real),
            within_class_std(images, labels),
        )


def within_class_std(images: NDArray[np.uint8], labels: NDArray) -> float:
    """Root of the mean variance of a pixel within a class, in units of [-1, 1]."""
    x = images.astype(np.float64) / 127.5 - 1
    return float(np.sqrt(np.mean([x[labels == label].var(axis=0, ddof=1).mean() for label in np.unique(labels)])))


class Way:
    """One way to sample a bundle: a variant, decoded token by token, by its plan, or by others."""

    def __init__(self, sampler: Sampler, bundle: str, plan: str, first: "Way | None", guidance: float) -> None:
        self.sampler, self.bundle, self.plan, self.guidance = sampler, bundle, plan, guidance
        self._first = first or self  # of its bundle

    def sample(self, noise: NDArray, asked: NDArray) -> NDArray[np.uint8]:
        """Digits [N, 28, 28] of classes [N]; keeps the data for the error of the others."""
        self.x = self.sampler.generate(noise, asked, guidance=self.guidance)
        return self.sampler.to_images(self.x)[..., 0]

    @property
    def error(self) -> float | None:
        """Against the first way of its bundle; None for that one itself."""
        return None if self._first is self else relative_error(self.x, self._first.x)

    def batch(self, size: int) -> None:
        """Sample one batch of a size."""
        asked = np.arange(size) % 10
        self.sampler.generate(self.sampler.noise(size, SEED), asked, guidance=self.guidance)

    def bits(self, images: NDArray[np.uint8], labels: NDArray) -> float | None:
        """Mean bits/dim of digits [N, 28, 28] with the noise of training, which no plan changes.

        None for latents, if the bundle cannot be inverted, and for all plans of a variant but the first.
        """
        manifest = self.sampler.manifest
        if (
            self.plan != "sequential"
            or not isinstance(manifest, AutoregressiveManifest)
            or manifest.image.mode == "latent"
            or manifest.autoencoder
        ):
            return None
        x = images[:, None].astype(np.float32) / 127.5 - 1
        x += manifest.model.noise_std * np.random.default_rng(0).standard_normal(x.shape, np.float32)
        density = self.sampler.invert(x, labels).log_likelihood
        return float(bits_per_dim(density, x[0].size, span=256 / 127.5).mean())


def ways(
    path: Path, variants: Sequence[str] | None, plans: Sequence[str], guidance: float, stack: ExitStack
) -> list[Way]:
    """The ways to sample a bundle, the exact one of its first variant first."""
    found: list[Way] = []
    manifest = Bundle.open(path).manifest
    has_students = isinstance(manifest, AutoregressiveManifest) and bool(manifest.students)
    plans = ["sequential", "auto", *(plan for plan in plans if has_students or not plan.startswith("student"))]
    for variant in manifest.variants:
        if variant.lowering != "cpu" or (variants and variant.name not in variants):
            continue
        for plan in plans:
            sampler = stack.enter_context(Sampler.open(path, variant=variant.name, plan=plan))
            if plan != "auto" or sampler.decoding != "sequential":
                found.append(Way(sampler, path.name, plan, found[0] if found else None, guidance))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="bundle")
    parser.add_argument("--variant", nargs="+", help="these only (default: all made for the CPU)")
    parser.add_argument(
        "--plan",
        nargs="+",
        default=[],
        metavar="PLAN",
        help="further plans; student and student+N count for bundles that have one",
    )
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--count", type=int, default=1000, help="samples of each way (default: 1000)")
    parser.add_argument("--repetitions", type=int, default=9, help="timed batches of each size (default: 9)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with np.load(DIGITS) as file:
        digits = {name: file[name] for name in file.files}
    torch.set_num_threads(1)
    judge = Judge(digits["test_images"])
    count, asked = arguments.count, np.arange(arguments.count) % 10
    training = np.random.default_rng(SEED).choice(len(digits["images"]), count, replace=False)
    real = judge.distribution(digits["images"][training], digits["labels"][training])
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        found = [
            way
            for path in arguments.bundles
            for way in ways(path, arguments.variant, arguments.plan, arguments.guidance, stack)
        ]
        noise = found[0].sampler.noise(count, SEED)
        for way in found:
            samples = way.sample(noise.reshape(-1, *way.sampler.noise_shape), asked)
            rows.append(
                {
                    "bundle": way.bundle,
                    "variant": way.sampler.variant.name,
                    "plan": way.plan,
                    "bits_per_dim": way.bits(digits["test_images"], digits["test_labels"]),
                    **vars(judge.distribution(samples, asked)),
                    "error": way.error,
                    "milliseconds": {},
                }
            )
        for size in sorted({size for way in found for size in way.sampler.bundle.manifest.batch_sizes}):
            own = [index for index, way in enumerate(found) if size in way.sampler.bundle.manifest.batch_sizes]
            works = [partial(lambda way, size, lap: way.batch(size), found[index], size) for index in own]
            for index, times in zip(own, take_turns(works, arguments.repetitions), strict=True):
                rows[index]["milliseconds"][size] = times.milliseconds
    if arguments.json:
        print(json.dumps({"guidance": arguments.guidance, "count": count, "real": vars(real), "rows": rows}, indent=1))
        return
    print(
        f"{count} digits each, guidance {arguments.guidance:g}; real: {real.recognised:.1%} recognised, Fréchet distance"
    )
    print(f"{real.frechet:.1f}, std within a class {real.within_class_std:.3f}")
    _print(rows)


def _print(rows: Sequence[dict[str, Any]]) -> None:
    sizes = sorted({size for row in rows for size in row["milliseconds"]})
    width = 2 + max(len(row["bundle"]) for row in rows)
    heads = "".join(f"{f'ms, {size}':>9}" for size in sizes)
    print(
        f"{'bundle':<{width}}{'variant':<11}{'plan':<12}{'bits/dim':>9}{'recognised':>11}{'Fréchet':>9}{'std':>7}"
        f"{'error':>9}{heads}"
    )
    for row in rows:
        bits = "" if row["bits_per_dim"] is None else f"{row['bits_per_dim']:.3f}"
        error = "" if row["error"] is None else f"{row['error']:.1e}"
        times = "".join(f"{row['milliseconds'].get(size, float('nan')):>9.1f}" for size in sizes)
        print(
            f"{row['bundle']:<{width}}{row['variant']:<11}{row['plan']:<12}{bits:>9}{row['recognised']:>11.1%}"
            f"{row['frechet']:>9.1f}{row['within_class_std']:>7.3f}{error:>9}{times}"
        )


if __name__ == "__main__":
    main()
