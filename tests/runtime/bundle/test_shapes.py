"""Several latent shapes in one bundle: each against PyTorch, over the same weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Place
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import UsageError
from starflow.training.autoregressive.config import StarflowConfig
from starflow.training.autoregressive.denoise import learned_denoise, score_denoise
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.autoregressive.starflow import Starflow
from tests.models import features_config, tarflow_config, write_checkpoint

SHAPES = [(8, 8), (4, 12), (12, 4)]  # of the last two, tokens are as many and stand elsewhere
TEXT = np.random.default_rng(1).standard_normal((3, 3, 6), np.float32)
NULL = np.random.default_rng(2).standard_normal((3, 6), np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AutoregressiveFlow]:
    """A checkpoint of a STARFlow with text, and its model."""
    folder = tmp_path_factory.mktemp("shapes") / "checkpoint"
    return folder, write_checkpoint(folder, features_config())


@pytest.fixture(scope="module")
def bundle(model: tuple[Path, AutoregressiveFlow]) -> Path:
    """All shapes, both lowerings, batches of two."""
    path = model[0].parent / "bundle"
    export_checkpoint(model[0], path, ExportOptions(batch=2, shape=SHAPES[0], other_shapes=SHAPES[1:]))
    return path


@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_samples_are_those_of_pytorch(
    bundle: Path, model: tuple[Path, AutoregressiveFlow], shape: tuple[int, int], variant: str
) -> None:
    with Sampler.open(bundle, variant=variant, shape=shape, threads=1) as sampler:
        noise = sampler.noise(3, seed=5)
        assert noise.shape == (3, 1, *shape)
        found = sampler.generate(noise, TEXT, NULL, guidance=1.5)
        back = sampler.invert(found, TEXT)
    text, null = torch.from_numpy(TEXT), torch.from_numpy(NULL).expand(3, 3, 6)
    expected = model[1].reverse(torch.from_numpy(noise), text, null, guidance=1.5).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        likelihood = model[1].log_likelihood(torch.from_numpy(found), text).numpy()
    np.testing.assert_allclose(back.log_likelihood, likelihood, rtol=1e-4)


def test_no_shape_means_the_first(bundle: Path) -> None:
    with Sampler.open(bundle, threads=1) as first, Sampler.open(bundle, shape=SHAPES[0], threads=1) as named:
        assert first.noise_shape == named.noise_shape == (1, *SHAPES[0])
        assert first.bundle == named.bundle


def test_weights_are_there_once(bundle: Path, model: tuple[Path, AutoregressiveFlow]) -> None:
    """A further shape adds its rotary tables to the weight file and nothing else."""
    single = bundle.parent / "single"
    export_checkpoint(model[0], single, ExportOptions(batch=2, shape=SHAPES[0]))
    (many, one) = (load_file(path / "graphs/weights/fp32.safetensors") for path in (bundle, single))
    assert set(one) <= set(many)
    added = [name for name in set(many) - set(one) if "_padding" not in name]
    # cosines and sines, of the deep block with text and of the shallow block without
    assert sorted(added) == sorted(
        f"rotary.axes.32.{prefix}+{grid}.{part}"
        for prefix in (0, 3)
        for grid in ("2x6", "6x2")
        for part in ("cos", "sin")
    )


def test_the_manifest_of_one_shape_is_an_ordinary_one(bundle: Path, model: tuple[Path, AutoregressiveFlow]) -> None:
    """It states what an export of that shape alone would, but for the names of files."""
    alone = bundle.parent / "alone"
    expected = export_checkpoint(model[0], alone, ExportOptions(batch=2, shape=(4, 12))).model_dump(mode="json")
    found = Bundle.open(bundle).at_shape((4, 12)).manifest.model_dump(mode="json")

    def without_files(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_files(v) for k, v in value.items() if k not in ("file", "weights", "provenance")}
        return [without_files(each) for each in value] if isinstance(value, list) else value

    assert without_files(found) == without_files(expected)
    assert found["shapes"] == []


def test_a_shape_that_is_not_there(bundle: Path, continuous_bundle: Path, capsys: pytest.CaptureFixture) -> None:
    message = "shape 6x8: this bundle has 8x8, 4x12, 12x4; `starflow export --shape` adds others"
    with pytest.raises(UsageError, match=message):
        Sampler.open(bundle, shape=(6, 8), threads=1)
    np.save(bundle.parent / "text.npy", TEXT)
    given = ["--condition", str(bundle.parent / "text.npy"), "--latents", str(bundle.parent / "x.npy")]
    for command in (["sample", *given], ["score", str(bundle.parent / "x.npy")], ["bench"], ["inspect"], ["verify"]):
        assert main([command[0], str(bundle), *command[1:], "--shape", "6x8"]) == 2
        assert message in capsys.readouterr().err
    assert main(["inspect", str(bundle), "--shape", "6"]) == 2
    assert "give height and width" in capsys.readouterr().err
    with pytest.raises(UsageError, match="shape 6x8: this bundle has 8x8"):
        Sampler.open(continuous_bundle, shape=(6, 8), threads=1)
    Sampler.open(continuous_bundle, shape=(8, 8), threads=1).close()


def test_commands_take_a_shape(bundle: Path, model: tuple[Path, AutoregressiveFlow], tmp_path: Path, capsys) -> None:
    np.save(tmp_path / "text.npy", TEXT)
    out = ["--latents", str(tmp_path / "x.npy"), "--out", str(tmp_path / "x.png")]
    given = ["--condition", str(tmp_path / "text.npy"), "--shape", "4x12"]
    assert main(["sample", str(bundle), *given, *out]) == 0
    assert np.load(tmp_path / "x.npy").shape == (3, 1, 4, 12)
    assert main(["score", str(bundle), str(tmp_path / "x.npy"), *given]) == 0
    assert main(["verify", str(bundle), "--shape", "12x4", "--checkpoint", str(model[0])]) == 0
    capsys.readouterr()
    assert main(["inspect", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shapes"] == "8x8, 4x12, 12x4"
    assert main(["inspect", str(bundle), "--shape", "4x12", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["data"].startswith("1x4x12")
    assert "shapes" not in summary


def test_every_file_of_every_shape_is_looked_at(bundle: Path) -> None:
    whole = Bundle.open(bundle)
    graphs = {path.relative_to(bundle).as_posix() for path in (bundle / "graphs").glob("*.onnx")}
    assert {file.path for file in whole.files()} == graphs | {"graphs/weights/fp32.safetensors"}
    assert len(graphs) == 3 * 2 * 2


def test_a_plan_belongs_to_its_shape(bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "text.npy", TEXT)
    given = ["--condition", str(tmp_path / "text.npy"), "--guidance", "0", "--images", "2", "--repetitions", "1"]
    before = Bundle.open(bundle).autoregressive
    assert main(["calibrate", str(bundle), "--plan", "--budget", "10", "--shape", "4x12", *given]) == 0
    after = Bundle.open(bundle).autoregressive
    assert after.plans == before.plans == ()
    plans = [at.plans for at in after.shapes]
    assert [len(each) for each in plans] == [len(plans[0]), 0]
    for plan in plans[0]:
        assert after.at_shape(4, 12).plan_for(plan.backend, plan.variant) == plan
    changed = after.replaced({Place((12, 4), None): {"plans": plans[0]}})
    assert changed.at_shape(12, 4).plans == plans[0]
    assert changed.replaced({Place((12, 4), None): {"plans": ()}}) == after


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (["8x8", "4x12", "8x8"], "name every shape once"),
        (["8x8", "5x8"], "--shape 5x8: give sides that are multiples of the patch size 2"),
        (["8x8", "12"], "--shape 12: give height and width"),
    ],
)
def test_shapes_that_cannot_be(
    model: tuple[Path, AutoregressiveFlow],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    shapes: list[str],
    message: str,
) -> None:
    asked = [word for shape in shapes for word in ("--shape", shape)]
    assert main(["export", str(model[0]), "-o", str(tmp_path / "b"), *asked]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_families_of_one_shape(tmp_path: Path, continuous_checkpoint: Path) -> None:
    write_checkpoint(tmp_path / "c", tarflow_config())
    with pytest.raises(UsageError, match="a TARFlow samples 8x8 only"):
        export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(other_shapes=[(4, 4)]))
    with pytest.raises(UsageError, match="a continuous flow holds one shape"):
        export_checkpoint(continuous_checkpoint, tmp_path / "b", ExportOptions(other_shapes=[(4, 4)]))


def test_a_manifest_whose_shapes_do_not_add_up(bundle: Path) -> None:
    manifest = Bundle.open(bundle).autoregressive
    content = json.loads(manifest.model_dump_json())
    content["shapes"][1]["blocks"][0]["capacity"] += 1
    with pytest.raises(ValueError, match=r"shapes, 12x4: .*rows, prefix or capacity do not fit"):
        AutoregressiveManifest.model_validate(content)
    content = json.loads(manifest.model_dump_json())
    content["shapes"][1] = content["shapes"][0]
    with pytest.raises(ValueError, match="shapes: a shape occurs twice"):
        AutoregressiveManifest.model_validate(content)


def test_quantised_weights_serve_every_shape(tmp_path: Path) -> None:
    config = features_config()
    network = config.model.model_copy(update={"channels": 128, "layers_per_block": (1, 1)})
    write_checkpoint(tmp_path / "c", config.model_copy(update={"model": network}))
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(batch=2, shape=SHAPES[0], other_shapes=SHAPES[1:]))
    np.save(tmp_path / "text.npy", TEXT)
    given = ["--condition", str(tmp_path / "text.npy"), "--guidance", "0", "--images", "4", "--budget", "0.2"]
    assert main(["calibrate", str(tmp_path / "b"), "--weights", "int8", "--lowering", "cpu", *given]) == 0
    quantised = Bundle.open(tmp_path / "b").autoregressive
    files = {quantised.at_shape(*shape).variants[-1].weights.path for shape in SHAPES}
    assert files == {"graphs/weights/cpu-int8.safetensors"}
    for shape in SHAPES:
        with (
            Sampler.open(tmp_path / "b", shape=shape, variant="cpu-int8", threads=1) as sampler,
            Sampler.open(tmp_path / "b", shape=shape, variant="cpu-fp32", threads=1) as exact,
        ):
            noise = exact.noise(2, seed=5)
            expected = exact.generate(noise, TEXT[:2])
            found = sampler.generate(noise, TEXT[:2])
        assert 0 < np.linalg.norm(found - expected) < 0.3 * np.linalg.norm(expected)


@pytest.mark.slow
def test_denoisers_have_the_shape(tmp_path: Path) -> None:
    """A graph for each shape, and the learned denoiser's weights once."""
    changes = {"learnable_self_denoiser": True, "layers_per_block": (1, 1)}
    network = StarflowConfig(**features_config().model.model_dump() | changes)
    config = features_config().model_copy(update={"model": network, "noise_std": 0.3})
    model = write_checkpoint(tmp_path / "c", config)
    assert isinstance(model, Starflow)
    options = ExportOptions(batch=2, shape=(4, 12), other_shapes=[(12, 4)], denoisers=["score", "learned"])
    export_checkpoint(tmp_path / "c", tmp_path / "b", options)
    for shape in ((4, 12), (12, 4)):
        with Sampler.open(tmp_path / "b", shape=shape, threads=1) as sampler:
            x = sampler.noise(3, seed=7)
            by_score, learned = (sampler.denoise(x, TEXT, how=kind) for kind in ("score", "learned"))
        given, text = torch.from_numpy(x), torch.from_numpy(TEXT)
        expected = score_denoise(model, given, text, noise_std=0.3).numpy()
        np.testing.assert_allclose(by_score, expected, rtol=1e-5, atol=2e-5)
        expected = learned_denoise(model, given, noise_std=0.3).numpy()
        np.testing.assert_allclose(learned, expected, rtol=1e-5, atol=2e-5)
    stored = load_file(tmp_path / "b/graphs/weights/fp32.safetensors")
    assert sum(array.nbytes for name, array in stored.items() if name.startswith("learnable_self_denoiser.")) == sum(
        value.nbytes for name, value in model.state_dict().items() if name.startswith("learnable_self_denoiser.")
    )
