"""The sampler against the PyTorch model, and against itself under other batch splits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Guidance, Jacobi, Sampler
from starflow.training.autoregressive.model import AutoregressiveFlow
from tests.models import features_config, tarflow_config, unconditional_config, write_checkpoint


@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_generate_equals_pytorch_reverse(
    tiny_bundle: Path, tiny_model: AutoregressiveFlow, variant: str, guidance: float
) -> None:
    with Sampler.open(tiny_bundle, variant=variant, threads=1) as sampler:
        noise = sampler.noise(3, seed=5)  # batch 2: one full part, one padded
        labels = [3, 7, 0]
        found = sampler.generate(noise, labels, guidance=guidance)
    expected = tiny_model.sample_labels(torch.from_numpy(noise), torch.tensor(labels), guidance)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize(("variant", "tolerance"), [("cpu-fp16", 2e-2), ("portable-fp16", 5e-2)])
def test_half_precision_stays_close(
    tiny_bundle: Path, tiny_model: AutoregressiveFlow, variant: str, tolerance: float
) -> None:
    with Sampler.open(tiny_bundle, variant=variant, threads=1) as sampler:
        noise = sampler.noise(2, seed=1)
        found = sampler.generate(noise, [1, 2], guidance=1.0)
    expected = tiny_model.sample_labels(torch.from_numpy(noise), torch.tensor([1, 2]), 1.0).numpy()
    relative = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-7 < relative < tolerance


def test_class_changes_the_sample_and_guidance_does_too(tiny_bundle: Path) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        noise = sampler.noise(2)
        plain, other = sampler.generate(noise, [1, 1]), sampler.generate(noise, [1, 2])
        guided = sampler.generate(noise, [1, 1], guidance=3.0)
    assert np.array_equal(plain[0], other[0])
    assert np.abs(plain[1] - other[1]).max() > 1e-2
    assert np.abs(plain - guided).max() > 1e-2


def test_same_seed_same_images_whatever_the_split(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    export_checkpoint(tiny_checkpoint, tmp_path / "b5", ExportOptions(batch=5))
    labels = [index % 10 for index in range(7)]
    pictures = []
    for bundle in (tiny_bundle, tmp_path / "b5"):
        with Sampler.open(bundle, threads=1) as sampler:
            pictures.append(sampler.sample(labels, guidance=1.0, seed=11))
            few = sampler.sample(labels[:3], guidance=1.0, seed=11)
            assert np.array_equal(few, pictures[-1][:3])
    assert np.array_equal(pictures[0], pictures[1])


def test_a_second_call_does_not_see_the_first(tiny_bundle: Path) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        noise = sampler.noise(2)
        first = sampler.generate(noise, [4, 5], guidance=2.0)
        sampler.generate(100 * noise, [1, 2], guidance=0.5)
        assert np.array_equal(first, sampler.generate(noise, [4, 5], guidance=2.0))


@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_jacobi_to_the_fixed_point_equals_sequential(tiny_bundle: Path, variant: str, chunk: int) -> None:
    with Sampler.open(tiny_bundle, variant=variant, threads=1) as sampler:
        noise = sampler.noise(2, seed=2)
        expected = sampler.generate(noise, [8, 9], guidance=1.0)
    plan = Jacobi(chunk, threshold=0.0, max_iterations=chunk + 1)
    with Sampler.open(tiny_bundle, variant=variant, plan=plan, threads=1) as sampler:
        np.testing.assert_allclose(sampler.generate(noise, [8, 9], guidance=1.0), expected, atol=2e-5)


def test_progress_ends_at_its_total(tiny_bundle: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        sampler.generate(sampler.noise(3), [1, 2, 3], progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (64, 64)  # two parts, two blocks of 16 tokens
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_unconditional_model_samples(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "checkpoint", unconditional_config())
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle")
    with Sampler.open(tmp_path / "bundle", threads=1) as sampler:
        noise = sampler.noise(2)
        np.testing.assert_allclose(sampler.generate(noise), model.reverse(torch.from_numpy(noise)).numpy(), atol=2e-5)


def test_feature_model_takes_conditions_of_other_shapes_too(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "checkpoint", features_config())
    export_checkpoint(
        tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(shape=(4, 12), condition_tokens=5, max_chunk=2)
    )
    features = np.random.default_rng(0).standard_normal((3, 5, 6), np.float32)
    null = np.zeros((5, 6), np.float32)
    with Sampler.open(tmp_path / "bundle", threads=1) as sampler:
        assert sampler.noise_shape == (1, 4, 12)
        noise = sampler.noise(3)
        found = sampler.generate(noise, features, null, guidance=1.5)  # a prefill of 5 in chunks of 2
    expected = model.reverse(
        torch.from_numpy(noise), torch.from_numpy(features), torch.from_numpy(null)[None], guidance=1.5
    )
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("guidance", [Guidance(0.0), Guidance(2.0), Guidance(2.0, scale=False, annealed=True)])
def test_tarflow_with_labels(tmp_path: Path, guidance: Guidance) -> None:
    model = write_checkpoint(tmp_path / "checkpoint", tarflow_config())
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(batch=2))
    with Sampler.open(tmp_path / "bundle", threads=1) as sampler:
        noise = sampler.noise(3)
        found = sampler.generate(noise, [0, 2, 1], guidance=guidance)
    expected = model.reverse(torch.from_numpy(noise), torch.tensor([0, 2, 1]), guidance=guidance)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


def test_bundle_without_guidance_runs_half_the_rows(tiny_checkpoint: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    export_checkpoint(tiny_checkpoint, tmp_path / "plain", ExportOptions(batch=2, guidance=False))
    with Sampler.open(tmp_path / "plain", threads=1) as plain, Sampler.open(tiny_bundle, threads=1) as guided:
        assert [block.rows for block in plain.bundle.autoregressive.blocks] == [2, 2]
        assert [block.rows for block in guided.bundle.autoregressive.blocks] == [2, 4]
        noise = plain.noise(2)
        np.testing.assert_allclose(plain.generate(noise, [1, 2]), guided.generate(noise, [1, 2]), atol=1e-6)
