"""How good is the digits model: recognition of its samples, bits/dim against a Gaussian, round trip through the bundle.

Samples come from an exported bundle through the runtime; likelihoods from the PyTorch model. Needs
`python examples/digits/fetch.py` and a checkpoint.

Example: python -m benchmarks.digits_quality examples/digits/checkpoint --guidance 0 1 2 3
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from benchmarks.digit_classifier import classify, load_classifier
from numpy.typing import NDArray

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.runtime.plain.bits_per_dim import bits_per_dim
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.checkpoint import load_autoregressive

LEVEL = 1 / 127.5  # one grey level in [-1, 1]
DIGITS = Path("out/digits/digits.npz")


def to_data(images: NDArray[np.uint8]) -> torch.Tensor:
    """[N, 28, 28] uint8 -> [N, 1, 28, 28] float32 in [-1, 1]."""
    return torch.from_numpy(images).float()[:, None] * LEVEL - 1


def noisy(x: torch.Tensor, std: float) -> torch.Tensor:
    """Gaussian noise as in training, or uniform dequantisation where `std` is 0."""
    generator = torch.Generator().manual_seed(0)
    if std:
        return x + std * torch.randn(x.shape, generator=generator)
    return x + LEVEL * (torch.rand(x.shape, generator=generator) - 0.5)


def gaussian_bits(train: torch.Tensor, test: torch.Tensor, std: float, *, diagonal: bool) -> float:
    """Bits/dim of a single Gaussian with the training images' mean and covariance (plus that of the noise)."""
    flat = train.flatten(1).double()
    covariance = torch.cov(flat.T) + torch.eye(flat.shape[1]) * (std**2 or LEVEL**2 / 12)
    if diagonal:
        covariance = torch.diag(covariance.diagonal())
    normal = torch.distributions.MultivariateNormal(flat.mean(0), covariance)
    return float(
        bits_per_dim(normal.log_prob(noisy(test, std).flatten(1).double()), flat.shape[1], span=256 * LEVEL).mean()
    )


@torch.inference_mode()
def flow_bits(model: AutoregressiveFlow, test: torch.Tensor, labels: torch.Tensor, std: float) -> float:
    """Mean bits/dim of held-out digits given their class."""
    x = noisy(test, std)
    values = [
        bits_per_dim(model.log_likelihood(x[part], model.encode_labels(labels[part])), x[0].numel(), span=256 * LEVEL)
        for part in torch.arange(len(x)).split(100)
    ]
    return float(torch.cat(values).mean())


@torch.inference_mode()
def round_trip(model: AutoregressiveFlow, sampler: Sampler, test: torch.Tensor, labels: torch.Tensor) -> float:
    """Real digits to z with PyTorch, back through the bundle without guidance: max error in [-1, 1] units."""
    z = model(test, model.encode_labels(labels)).z
    back = sampler.generate(z.numpy(), labels.numpy())
    return float(np.abs(back - test.numpy()).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--guidance", type=float, nargs="+", default=[0.0, 1.0, 2.0, 3.0])
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--variant", help="variant that samples (default: the cpu one)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    config, model = load_autoregressive(arguments.checkpoint)
    with np.load(DIGITS) as file:
        digits = {name: file[name] for name in file.files}
    train, test = to_data(digits["images"]), to_data(digits["test_images"])
    labels = torch.from_numpy(digits["test_labels"]).long()
    network = load_classifier()
    asked = np.arange(10 * arguments.per_class) % 10

    report: dict[str, object] = {
        "real_digits_recognised": float((classify(network, digits["test_images"]) == digits["test_labels"]).mean())
    }
    with tempfile.TemporaryDirectory() as folder:
        export_checkpoint(arguments.checkpoint, Path(folder) / "bundle", ExportOptions(batch=50))
        with Sampler.open(Path(folder) / "bundle", variant=arguments.variant) as sampler:
            recognised, confused = {}, {}
            for weight in arguments.guidance:
                images = sampler.sample(asked, guidance=weight, seed=1)[..., 0]
                right = classify(network, images) == asked
                recognised[weight] = float(right.mean())
                confused[weight] = {int(c): int((~right[asked == c]).sum()) for c in range(10)}
            report["recognised_at_guidance"] = recognised
            report["misread_by_class"] = confused
            report["round_trip_max_error"] = round_trip(model, sampler, test[:50], labels[:50])
    noise = config.noise_std
    floor = (0.5 * math.log(2 * math.pi * math.e) + math.log(noise) - math.log(LEVEL)) / math.log(2) if noise else 0.0
    report["bits_per_dim"] = {
        f"with the training noise ({noise:g}), whose own entropy is {floor:.3f}": {
            "flow": flow_bits(model, test, labels, noise),
            "gaussian": gaussian_bits(train, test, noise, diagonal=False),
            "gaussian, diagonal": gaussian_bits(train, test, noise, diagonal=True),
        },
        "uniform dequantisation, no other noise": {
            "flow": flow_bits(model, test, labels, 0.0),
            "gaussian": gaussian_bits(train, test, 0.0, diagonal=False),
            "gaussian, diagonal": gaussian_bits(train, test, 0.0, diagonal=True),
        },
    }
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    print(f"recognised: real held-out digits {report['real_digits_recognised']:.1%}")
    for weight, rate in recognised.items():
        print(f"  guidance {weight:g}: {rate:.1%} of {len(asked)} samples; misread by class {confused[weight]}")
    print(f"round trip of 50 real digits, PyTorch to the bundle: max error {report['round_trip_max_error']:.2g}")
    for what, values in report["bits_per_dim"].items():  # type: ignore[attr-defined]
        print(f"bits/dim of 1,000 held-out digits, {what}:")
        print("  " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))


if __name__ == "__main__":
    main()
