"""Flow blocks with patches of their own, from the checkpoint to the bundle: each way of running it against PyTorch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.export.tensorrt.interpreter.backend import NetworkBackend
from starflow.runtime import Sampler
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest_file import manifest_content, read_manifest
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plans.decode_plan import Jacobi
from starflow.training.autoregressive.config import TarflowConfig
from starflow.training.autoregressive.denoise import score_denoise
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.checkpoint import load_autoregressive
from tests.models import tarflow_config, write_checkpoint

LABELS = np.array([1, 7, 3])
PLANS: list[Any] = ["sequential", Jacobi(3, 1e-12, 32)]


@pytest.fixture(scope="module")
def model(patches_checkpoint: Path) -> AutoregressiveFlow:
    return load_autoregressive(patches_checkpoint)[1]


def expected(model: AutoregressiveFlow, noise: np.ndarray, guidance: float) -> np.ndarray:
    y = model.encode_labels(torch.from_numpy(LABELS))
    null = model.encode_labels(torch.full((len(LABELS),), 10))
    return model.reverse(torch.from_numpy(noise), y, null, guidance=guidance).numpy()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
def test_samples_are_pytorchs(
    patches_bundle: Path, model: AutoregressiveFlow, variant: str, guidance: float, plan: Any
) -> None:
    with Sampler.open(patches_bundle, variant=variant, plan=plan, threads=1) as sampler:
        noise = sampler.noise(3, 5)
        for _ in range(2):
            found = sampler.generate(noise, LABELS, guidance=guidance)
            assert np.abs(found - expected(model, noise, guidance)).max() <= 1e-5


@pytest.mark.parametrize("plan", PLANS)
def test_the_network_interpreter_makes_the_same_samples(
    patches_bundle: Path, model: AutoregressiveFlow, plan: Any
) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = Bundle.open(patches_bundle)
    variant = bundle.variant("portable-fp32", "portable")
    with Sampler(bundle, variant, NetworkBackend(bundle, variant, rounding=False), plan) as sampler:
        noise = sampler.noise(3, 5)
        assert np.abs(sampler.generate(noise, LABELS, guidance=2.0) - expected(model, noise, 2.0)).max() <= 1e-5


def test_the_deep_block_takes_as_many_steps_as_it_has_patches(patches_bundle: Path) -> None:
    passes: dict[int, int] = {}
    with Sampler.open(patches_bundle, plan="sequential", threads=1) as sampler:
        sampler.generate(sampler.noise(1), [3], on_passes=passes.__setitem__)
    assert passes == {2: 4, 1: 8, 0: 16}


def test_inversion_and_density(patches_bundle: Path, model: AutoregressiveFlow) -> None:
    x = np.random.default_rng(2).standard_normal((3, 1, 8, 8), np.float32)
    with Sampler.open(patches_bundle, threads=1) as sampler:
        found = sampler.invert(x, LABELS)
        assert np.abs(sampler.generate(found.noise, LABELS) - x).max() < 1e-5
    with torch.no_grad():
        y = model.encode_labels(torch.from_numpy(LABELS))
        out = model(torch.from_numpy(x), y)
        np.testing.assert_allclose(found.noise, out.z.numpy(), atol=1e-5)
        np.testing.assert_allclose(
            found.log_likelihood, model.log_likelihood(torch.from_numpy(x), y).numpy(), rtol=1e-5
        )
        # Each value's own part, carried to the token of 2x2 that holds it.
        by_token = torch.zeros(3, 16)
        for config, term in zip(model.block_configs, out.log_dets, strict=True):
            natural = term.flip(1) if config.reversed else term
            by_token += model._tokens(natural, config, 8, 8).sum(2)
    np.testing.assert_allclose(found.log_determinant, by_token.numpy(), atol=1e-4)


def test_the_score(patches_bundle: Path, model: AutoregressiveFlow) -> None:
    x = np.random.default_rng(3).standard_normal((3, 1, 8, 8), np.float32)
    with Sampler.open(patches_bundle, threads=1) as sampler:
        found = sampler.denoise(x, LABELS, how="score")
    y = model.encode_labels(torch.from_numpy(LABELS))
    truth = score_denoise(model, torch.from_numpy(x), y, noise_std=0.1).numpy()
    np.testing.assert_allclose(found, truth, atol=1e-5)


def test_a_tarflow(tmp_path: Path) -> None:
    """Learned positions, class vectors, a learned prior, no start token, channels first, linear guidance that anneals."""
    options = tarflow_config().model.model_dump() | {"in_channels": 2, "block_patch_sizes": ((4, 8), (2, 4))}
    config = tarflow_config().model_copy(update={"model": TarflowConfig(**options)})
    model = write_checkpoint(tmp_path / "checkpoint", config)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(batch=2))
    labels = np.array([0, 2])
    with Sampler.open(tmp_path / "bundle", plan="sequential", threads=1) as sampler:
        noise = sampler.noise(2, 1)
        truth = model.reverse(torch.from_numpy(noise), torch.from_numpy(labels), guidance=1.5).numpy()
        assert np.abs(sampler.generate(noise, labels, guidance=1.5) - truth).max() <= 1e-5
        back = sampler.invert(truth, labels)
        z = model(torch.from_numpy(truth), torch.from_numpy(labels)).z
        np.testing.assert_allclose(back.noise, z.detach().numpy(), atol=1e-4)


def test_verify_compares_every_block_in_its_own_tokens(patches_bundle: Path, patches_checkpoint: Path) -> None:
    checkpoint = ["--checkpoint", str(patches_checkpoint), "--network", "--json"]
    assert main(["verify", str(patches_bundle), *checkpoint]) == 0
    assert main(["verify", str(patches_bundle), *checkpoint, "--tolerance", "fp32.block=1e-9"]) == 1


def test_shapes_consist_of_whole_patches(patches_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give sides that are multiples of the patch size 4"):
        export_checkpoint(patches_checkpoint, tmp_path / "no", ExportOptions(shape=(8, 6)))
    model = load_autoregressive(patches_checkpoint)[1]
    options = ExportOptions(shape=(8, 8), other_shapes=[(4, 12)], batch=(1, 2))
    export_checkpoint(patches_checkpoint, tmp_path / "bundle", options)
    with Sampler.open(tmp_path / "bundle", shape=(4, 12), batch=1, plan="sequential", threads=1) as sampler:
        noise = sampler.noise(1)
        y = model.encode_labels(torch.tensor([4]))
        truth = model.reverse(torch.from_numpy(noise), y).numpy()
        assert np.abs(sampler.generate(noise, [4]) - truth).max() <= 1e-5
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert read_manifest(json.loads(manifest_content(manifest))) == manifest


def test_the_manifest_states_the_patches(patches_bundle: Path, tiny_bundle: Path) -> None:
    content = json.loads((patches_bundle / "manifest.json").read_text())
    assert content["schema_version"] == 3
    assert [block["patch"] for block in content["blocks"]] == [[2, 2], [2, 4], [4, 4]]
    assert [block["capacity"] for block in content["blocks"]] == [16, 8, 5]
    older = json.loads((tiny_bundle / "manifest.json").read_text())
    assert older["schema_version"] == 1
    assert all("patch" not in block for block in older["blocks"])
