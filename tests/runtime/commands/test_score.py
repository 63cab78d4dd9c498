"""Data back to noise, and its density, against the PyTorch model."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.autoregressive.tokens import patchify
from starflow.runtime.command_line import main
from starflow.runtime.plain.bits_per_dim import bits_per_dim
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.sampler import Sampler
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.config import CheckpointConfig
from tests.models import class_config, features_config, tarflow_config, unconditional_config, write_checkpoint

CONFIGS = {
    "class": class_config(),
    "features": features_config(),
    "tarflow": tarflow_config(),
    "unconditional": unconditional_config(),
}


@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
@pytest.mark.parametrize("name", CONFIGS)
def test_noise_and_density_are_those_of_the_model(tmp_path: Path, name: str, variant: str) -> None:
    config: CheckpointConfig = CONFIGS[name]
    model = write_checkpoint(tmp_path / "c", config)
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(batch=2))
    with Sampler.open(tmp_path / "b", variant=variant, threads=1) as sampler:
        spec, shape = sampler.manifest.conditioning, sampler.manifest.model.data_shape
        draw = np.random.default_rng(0)
        x = 0.5 * draw.standard_normal((3, *shape), np.float32)  # a full batch and a padded one
        condition = given = None
        if spec.kind == "features":
            condition = draw.standard_normal((3, spec.tokens, spec.width), np.float32)
            given = torch.from_numpy(condition)
        elif spec.num_classes:
            condition = np.array([0, 2, 1])
            given = model.encode_labels(torch.from_numpy(condition))
        found = sampler.invert(x, condition)
        back = sampler.generate(found.noise, condition)
        summary = sampler.bundle.autoregressive.model
        noise = patchify(found.noise, summary) if summary.noise_layout == "image" else found.noise
    with torch.no_grad():
        expected = model(torch.from_numpy(x), given)
        likelihood = model.log_likelihood(torch.from_numpy(x), given).numpy()
    z = expected.activations[-1].numpy()
    if model.sqrt_prior is not None:
        z = z / model.sqrt_prior.numpy()
    assert np.abs(noise - z).max() < 1e-4 * np.abs(z).max()
    size = x[0].size
    np.testing.assert_allclose(bits_per_dim(found.log_likelihood, size), bits_per_dim(likelihood, size), atol=1e-4)
    np.testing.assert_allclose(back, x, atol=1e-4)


def test_determinant_by_token_is_that_of_the_jacobian(tiny_bundle: Path, tiny_model: AutoregressiveFlow) -> None:
    """log |dz/dx| over all tokens against the determinant of the whole map, by automatic differentiation."""
    with Sampler.open(tiny_bundle, variant="cpu-fp32", threads=1) as sampler:
        x = 0.5 * np.random.default_rng(1).standard_normal((1, *sampler.noise_shape), np.float32)
        found = sampler.invert(x, [4])
    y = tiny_model.encode_labels(torch.tensor([4]))
    jacobian = torch.autograd.functional.jacobian(lambda data: tiny_model(data, y).activations[-1], torch.from_numpy(x))
    size = x.size
    _, log_determinant = np.linalg.slogdet(jacobian.reshape(size, size).double().numpy())
    assert found.log_determinant.shape == (1, sampler.bundle.autoregressive.model.tokens)
    assert found.log_determinant.sum() == pytest.approx(log_determinant, abs=1e-3)


@pytest.mark.parametrize(("options", "std"), [([], 0.1), (["--noise-std", "0.3"], 0.3), (["--noise-std", "0"], 0.0)])
def test_command_scores_images_with_the_noise_of_training_or_that_asked_for(
    tiny_bundle: Path,
    tiny_model: AutoregressiveFlow,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    options: list[str],
    std: float,
) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        _, height, width = sampler.manifest.model.data_shape
        mode = sampler.manifest.image.mode
    files = [str(tmp_path / f"{index}.png") for index in range(3)]
    for index, file in enumerate(files):
        pixels = np.random.default_rng(index).integers(0, 256, (height, width), np.uint8)
        Image.fromarray(pixels).convert(mode).save(file)
    command = ["score", str(tiny_bundle), *files, "--labels", "1,2,3", "--threads", "1", *options]
    assert main([*command, "--json", "--latents", str(tmp_path / "z.npy")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in report["images"]] == files
    assert report["noise_std"] == std
    assert np.load(tmp_path / "z.npy").shape[0] == 3
    assert all(row["round_trip_error"] < 1e-3 for row in report["images"])
    # The same by PyTorch, from the same noise.
    pictures = np.stack([np.asarray(Image.open(file)).reshape(height, width, -1) for file in files]).transpose(
        0, 3, 1, 2
    )
    draw = np.random.default_rng(0)
    if std:
        noise = std * draw.standard_normal(pictures.shape, np.float32)
    else:  # uniform, of one grey level
        noise = (draw.random(pictures.shape, np.float32) - 0.5) / 127.5
    x = torch.from_numpy(pictures.astype(np.float32) / 127.5 - 1 + noise)
    with torch.no_grad():
        nats = tiny_model.log_likelihood(x, tiny_model.encode_labels(torch.tensor([1, 2, 3])))
    expected = bits_per_dim(nats, x[0].numel(), span=256 / 127.5).numpy()
    np.testing.assert_allclose([row["bits_per_dim"] for row in report["images"]], expected, atol=1e-4)
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "bits/dim" in printed
    assert f"standard deviation {std:g}, as {'given' if options else 'in training'}" in printed


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing.png", "does not exist"),
        ("text.png", "is not an image"),
        ("small.png", "is 3x2, this bundle makes"),
        ("nan.npy", "data holds NaN"),
        ("shape.npy", r"data has shape \[2, 5\]"),
    ],
)
def test_bad_images_are_named_in_a_line(
    tiny_bundle: Path, tmp_path: Path, what: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    Image.new("L", (3, 2)).save(tmp_path / "small.png")
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        np.save(tmp_path / "nan.npy", np.full((1, *sampler.noise_shape), np.nan, np.float32))
        with pytest.raises(UsageError, match="data has shape"):
            sampler.invert(np.zeros((2, 5)))
    np.save(tmp_path / "shape.npy", np.zeros((2, 5), np.float32))
    assert main(["score", str(tiny_bundle), str(tmp_path / what), "--threads", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
