"""Denoising with a bundle against PyTorch, and the errors of a bundle that cannot denoise."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from starflow.export.autoregressive.denoiser_graphs import denoiser_kinds
from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.export.verification.routes import find_routes
from starflow.export.verification.tolerances import tolerances
from starflow.export.verification.torch_reference import TorchReference
from starflow.export.verification.verify import verify
from starflow.runtime import Sampler
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_spec import DenoiserKind
from starflow.runtime.command_line import main
from starflow.runtime.networks.denoising import choose_denoiser
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.traces.case import draw_case
from starflow.training.autoregressive.denoise import learned_denoise, score_denoise
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.autoregressive.starflow import Starflow
from starflow.training.checkpoint import open_checkpoint
from tests.models import tarflow_config, write_checkpoint

NOISE_STD = 0.3
TEXT = np.random.default_rng(1).standard_normal((3, 5, 6), np.float32)


@pytest.fixture
def model(denoising_model: tuple[Path, AutoregressiveFlow]) -> tuple[Path, AutoregressiveFlow]:
    return denoising_model


@pytest.fixture
def bundle(denoising_bundle: Path) -> Path:
    return denoising_bundle


def test_samples_are_denoised_under_their_condition(bundle: Path, model: tuple[Path, AutoregressiveFlow]) -> None:
    text = torch.from_numpy(TEXT)
    with Sampler.open(bundle, threads=1) as sampler:
        noise, null = sampler.noise(3, seed=2), np.zeros((5, 6), np.float32)
        samples = sampler.generate(noise, TEXT, null, guidance=1.5)
        np.testing.assert_array_equal(samples, sampler.generate(noise, TEXT, null, guidance=1.5, denoise="none"))
        by_score = sampler.generate(noise, TEXT, null, guidance=1.5, denoise="score", denoising_rate=0.5)
        learned = sampler.generate(noise, TEXT, null, guidance=1.5, denoise="learned")
        np.testing.assert_array_equal(learned[1:2], sampler.denoise(samples[1:2], TEXT[1:2], how="learned"))
    x, network = torch.from_numpy(samples), model[1]
    expected = score_denoise(network, x, text, noise_std=NOISE_STD, rate=0.5).numpy()
    np.testing.assert_allclose(by_score, expected, rtol=1e-5, atol=2e-5)
    assert np.abs(by_score - samples).max() > 0.01
    assert isinstance(network, Starflow)
    expected = learned_denoise(network, x, text, noise_std=NOISE_STD).numpy()
    np.testing.assert_allclose(learned, expected, rtol=1e-5, atol=2e-5)
    assert np.abs(learned - samples).max() > 0.01


def test_weights_are_shared_with_the_step_graphs(bundle: Path, model: tuple[Path, AutoregressiveFlow]) -> None:
    """What denoisers add is the learned one's network and what step graphs store in another form: small vectors."""
    plain = bundle.parent / "plain"
    options = ExportOptions(batch=2, shape=(4, 12), condition_tokens=5, precisions=("fp16",), denoisers=())
    export_checkpoint(model[0], plain, options)
    with_denoisers, without = (load_file(path / "graphs/weights/fp16.safetensors") for path in (bundle, plain))
    added = {name: with_denoisers[name] for name in with_denoisers.keys() - without.keys() if "_padding" not in name}
    ours = {name: array for name, array in added.items() if not name.startswith("learnable_self_denoiser.")}
    assert len(added) > len(ours)
    assert all(array.ndim == 1 and array.dtype == np.float32 for array in ours.values())
    matrices = [array.dtype for array in added.values() if array.ndim == 2]
    assert set(matrices) == {np.dtype(np.float16)}


def test_which_denoiser_a_variant_takes(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    half, full = (next(v for v in manifest.variants if v.precision == precision) for precision in ("fp16", "fp32"))
    quantised = full.model_copy(update={"precision": "int8"})
    taken = [choose_denoiser(manifest, "score", variant).precision for variant in (half, full, quantised)]
    assert taken == ["fp16", "fp32", "fp32"]


def test_verify_compares_them_with_pytorch(bundle: Path, model: tuple[Path, AutoregressiveFlow]) -> None:
    opened = Bundle.open(bundle)
    case = draw_case(opened)

    def passed(checked: Bundle) -> dict[str, bool]:
        routes, _ = find_routes(checked, ["onnxruntime"], [])
        result = verify(checked, TorchReference(model[0], checked), routes, case, tolerances())
        return {m.route: m.passed for m in result.measurements}

    names = [f"denoiser {kind}-{precision}" for precision in ("fp32", "fp16") for kind in ("score", "learned")]
    assert passed(opened) == dict.fromkeys(names, True)
    other = {"score": "learned", "learned": "score"}
    swapped = tuple(spec.model_copy(update={"kind": other[spec.kind]}) for spec in opened.manifest.denoisers)
    manifest = opened.manifest.model_copy(update={"denoisers": swapped})
    assert passed(Bundle(bundle, manifest)) == dict.fromkeys(names, False)


def test_the_command_line(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.save(tmp_path / "text.npy", TEXT)
    made = {}
    for how in ("auto", "none", "learned"):
        out = tmp_path / f"{how}.npy"
        given = ["--condition", str(tmp_path / "text.npy"), "--latents", str(out), "--out", str(tmp_path / "x.png")]
        assert main(["sample", str(bundle), *given, "--denoise", how, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["denoise"] == how.replace("auto", "none")
        made[how] = np.load(out)
    np.testing.assert_array_equal(made["auto"], made["none"])
    assert np.abs(made["learned"] - made["none"]).max() > 0.01


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("score", "has no way of denoising; `starflow export --denoise score` adds it"),
        ("learned", "`starflow export --denoise learned` adds it if the model has a denoiser"),
        ("decoder", "trained on noisy latents"),
        ("median", "choose auto, none, score, learned, decoder"),
    ],
)
def test_a_bundle_that_lacks_it_says_how_to_have_it(
    tiny_bundle: Path, capsys: pytest.CaptureFixture, how: str, message: str
) -> None:
    assert main(["sample", str(tiny_bundle), "--labels", "1", "--denoise", how]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_a_bundle_has_is_named(bundle: Path) -> None:
    with Sampler.open(bundle, threads=1) as sampler:
        with pytest.raises(UsageError, match="this bundle has only score, learned;"):
            sampler.generate(sampler.noise(1), TEXT[:1], denoise="decoder")
        with pytest.raises(UsageError, match="denoising rate -1"):
            sampler.generate(sampler.noise(1), TEXT[:1], denoise="score", denoising_rate=-1)


def test_continuous_flows_have_none(continuous_bundle: Path) -> None:
    with (
        Sampler.open(continuous_bundle, threads=1) as sampler,
        pytest.raises(UsageError, match="have no noise to remove"),
    ):
        sampler.sample(count=1, denoise="score")


@pytest.mark.parametrize(("asked", "kinds"), [((), ()), (None, ("learned",)), (["score"], ("score",))])
def test_what_an_export_writes(
    model: tuple[Path, AutoregressiveFlow], asked: list[DenoiserKind] | None, kinds: tuple[DenoiserKind, ...]
) -> None:
    config, _ = open_checkpoint(model[0])
    assert denoiser_kinds(config, ExportOptions(denoisers=asked)) == kinds


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["learned"], "this model has no learned denoiser"),
        (["score"], "config.json has no noise_std"),
        (["none", "score"], "give none alone, or names of denoisers"),
    ],
)
def test_denoisers_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture, asked: list[str], message: str
) -> None:
    write_checkpoint(tmp_path / "c", tarflow_config())
    assert main(["export", str(tmp_path / "c"), "-o", str(tmp_path / "b"), "--denoise", *asked]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
