"""How good is the continuous digits model: recognition of its samples by guidance and steps, and bits/dim.

Everything in PyTorch, so that a checkpoint can be judged before it is exported. Needs `python examples/digits/fetch.py`.

Example: python -m benchmarks.continuous_digits examples/digits-cfm/checkpoint --guidance 0 1 2 --steps 4 8 16
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from benchmarks.digit_classifier import classify, load_classifier
from benchmarks.digits_quality import DIGITS, LEVEL, noisy, to_data

from starflow.runtime.plain.bits_per_dim import bits_per_dim
from starflow.runtime.plain.images import to_uint8
from starflow.training.checkpoint import load_continuous
from starflow.training.continuous.likelihood import flow_log_likelihood
from starflow.training.continuous.model import ContinuousFlow
from starflow.training.data.split import drawn


@torch.inference_mode()
def recognised(network: ContinuousFlow, judge: torch.nn.Module, count: int, guidance: float, steps: int) -> float:
    """Part of `count` samples of each class that the classifier reads as what was asked for."""
    labels = torch.arange(10 * count) % 10
    noise = torch.randn(network.noise_shape(len(labels)), generator=torch.Generator().manual_seed(1))
    null = torch.tensor([10])
    x = [
        network.reverse(noise[part], labels[part], null, guidance=guidance, steps=steps)
        for part in torch.arange(len(labels)).split(100)
    ]
    return float((classify(judge, to_uint8(torch.cat(x).numpy())[..., 0]) == labels.numpy()).mean())


def flow_bits(network: ContinuousFlow, test: torch.Tensor, labels: torch.Tensor, std: float, steps: int) -> list[float]:
    """Bits/dim of each held-out digit given its class, by Hutchinson's estimate."""
    x, generator, bits = noisy(test, std), torch.Generator().manual_seed(0), []
    for part in torch.arange(len(x)).split(64):
        velocity = partial(network, y=labels[part])
        log_likelihood = flow_log_likelihood(velocity, x[part], steps=steps, generator=generator)
        bits += bits_per_dim(log_likelihood, x[0].numel(), span=256 * LEVEL).tolist()
    return bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--guidance", type=float, nargs="+", default=[0.0, 1.0, 2.0, 3.0])
    parser.add_argument("--steps", type=int, nargs="+", default=[25], help="midpoint steps")
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument(
        "--likelihood-images", type=int, default=0, help="held-out digits for bits/dim; 0: leave it out"
    )
    parser.add_argument("--likelihood-steps", type=int, default=10)
    arguments = parser.parse_args()
    config, network = load_continuous(arguments.checkpoint)
    network.requires_grad_(False)
    judge = load_classifier()
    rates = {
        f"guidance {weight:g}, {steps} midpoint steps": recognised(network, judge, arguments.per_class, weight, steps)
        for weight in arguments.guidance
        for steps in arguments.steps
    }
    report: dict[str, object] = {"recognised": rates, "samples": 10 * arguments.per_class}
    if arguments.likelihood_images:
        with np.load(DIGITS) as file:
            test, labels = to_data(file["test_images"]), torch.from_numpy(file["test_labels"]).long()
        # They are sorted by class, so the first ones stand for a few classes only.
        chosen = drawn(labels, len(labels), min(len(labels), arguments.likelihood_images))
        test, labels = test[chosen], labels[chosen]
        bits = flow_bits(network, test, labels, config.noise_std, arguments.likelihood_steps)
        report["bits_per_dim"] = {
            "mean": float(np.mean(bits)),
            "standard_error": float(np.std(bits) / len(bits) ** 0.5),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
