"""Velocity graphs through TensorRT's parser and the interpreter, against ONNX Runtime and PyTorch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.export.tensorrt.interpreter.backend import NetworkBackend
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plans.integration_plan import integration_plan
from starflow.runtime.sampler import Sampler
from starflow.training.config import CheckpointConfig
from tests.models import points_config, velocity_config, write_velocity

pytest.importorskip("tensorrt_rtx")

TEXT = velocity_config(num_classes=0, txt_size=3, txt_dim=6, head_dim=32, channels=64)


@pytest.mark.parametrize("config", [velocity_config(), TEXT, points_config()], ids=["classes", "text", "points"])
def test_what_the_parser_made_integrates_as_pytorch_does(config: CheckpointConfig, tmp_path: Path) -> None:
    network = write_velocity(tmp_path / "checkpoint", config)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(precisions=("fp32", "fp16"), batch=2))
    bundle = Bundle.open(tmp_path / "bundle")
    plan = integration_plan("midpoint", 6)
    condition, null, y, y_null = None, None, None, None
    if config.conditioning.kind == "class":
        condition = np.array([2, 0])
        y, y_null = torch.tensor(condition), torch.tensor([3, 3])
    elif config.conditioning.kind == "features":
        condition = np.random.default_rng(0).standard_normal((2, 3, 6), np.float32)
        null = np.random.default_rng(1).standard_normal((3, 6), np.float32)
        y, y_null = torch.tensor(condition), torch.tensor(null)
    guidance = 0.0 if condition is None else 1.2
    with Sampler(
        bundle,
        bundle.variant("portable-fp32", "portable"),
        NetworkBackend(bundle, bundle.variant("portable-fp32", "portable")),
        plan,
    ) as sampler:
        noise = sampler.noise(2, seed=4)
        found = sampler.generate(noise, condition, null, guidance=guidance)
    expected = network.reverse(torch.from_numpy(noise), y, y_null, guidance=guidance, steps=6).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)

    half = bundle.variant("portable-fp16", "portable")
    ends = []
    for backend in (NetworkBackend(bundle, half, rounding=True), OnnxRuntimeBackend(bundle, half, threads=1)):
        with Sampler(bundle, half, backend, plan) as sampler:
            ends.append(sampler.generate(noise, condition, null, guidance=guidance))
    for end in ends:
        assert 0 < np.linalg.norm(end - expected) < 5e-3 * np.linalg.norm(expected)
