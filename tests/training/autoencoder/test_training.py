"""Training autoencoders and noisy decoders: they learn, resume exactly, and leave folders that diffusers reads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from starflow.runtime.plain.errors import CheckpointError, RecipeError
from starflow.training.autoencoder.config import ReconstructionConfig
from starflow.training.autoencoder.folder import open_autoencoder
from starflow.training.autoencoder.trainer import AutoencoderTrainer, DecoderTrainer, psnr, reconstruction_loss
from starflow.training.data.dataset import load_dataset
from starflow.training.data.samples import Dataset, to_float
from starflow.training.data.source import Digits8Source, PointsSource
from starflow.training.recipe import AutoencoderRecipe, DecoderRecipe, load_recipe
from tests.training.recipes import load_flow_recipe

TINY: dict[str, Any] = {
    "kind": "tiny",
    "latent_channels": 2,
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "num_encoder_blocks": [1, 1],
    "num_decoder_blocks": [1, 1],
}
KL: dict[str, Any] = {"kind": "kl", "latent_channels": 2, "block_out_channels": [8, 8], "norm_num_groups": 4}
SETTINGS = {"steps": 12, "batch_size": 64, "warmup_steps": 2, "threads": 1, "learning_rate": 5e-3, "ema_decay": 0.9}
OBJECTIVE = {"noise_std": 0.5}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(Digits8Source.model_validate({"kind": "digits8"}), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def few(digits: Dataset) -> Dataset:
    """Enough of them to run, and to run out of."""
    return replace(digits, train=digits.train[torch.arange(100)], test=digits.test[torch.arange(8)])


def autoencoder_recipe(network: dict[str, Any] = TINY, **training: Any) -> AutoencoderRecipe:
    sections = {"autoencoder": network, "data": {"kind": "digits8"}, "training": SETTINGS | training}
    return AutoencoderRecipe.model_validate(sections | {"objective": OBJECTIVE})


def decoder_recipe(autoencoder: Path, noise_std: float = 0.5, **training: Any) -> DecoderRecipe:
    decoder = {"autoencoder": str(autoencoder), "noise_std": noise_std}
    sections = {"decoder": decoder, "data": {"kind": "digits8"}, "training": SETTINGS | training}
    return DecoderRecipe.model_validate(sections)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """The folder of an autoencoder that has seen no noise."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = autoencoder_recipe(steps=200, flip=True)
    objective = recipe.objective.model_copy(update={"noise_std": 0.0})
    AutoencoderTrainer(recipe.model_copy(update={"objective": objective}), digits, folder).fit()
    return folder / "checkpoint"


@pytest.mark.parametrize("network", [TINY, KL], ids=["tiny", "kl"])
def test_a_stopped_run_resumes_exactly(tmp_path: Path, few: Dataset, network: dict[str, Any]) -> None:
    recipe = autoencoder_recipe(network, batch_size=8, accumulate=2, flip=True, shift=1, precision="bf16")
    whole, stopped = AutoencoderTrainer(recipe, few, tmp_path / "a"), tmp_path / "b"
    whole.fit()
    AutoencoderTrainer(recipe, few, stopped).fit(max_steps=5)
    again = AutoencoderTrainer(recipe, few, stopped)
    assert again.resume()
    outcome = again.fit()
    assert outcome.test_psnr == whole.metrics["test_psnr"]
    for name, value in whole.average.state_dict().items():
        torch.testing.assert_close(again.average.state_dict()[name], value, rtol=0, atol=0)


def test_it_learns_and_leaves_what_diffusers_reads(digits: Dataset, trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    images = to_float(digits.test.tensor)
    blank = psnr(images.mean((1, 2, 3), keepdim=True).expand_as(images), images).mean()
    assert metrics["test_psnr"] > blank + 3
    folder = open_autoencoder(trained)
    assert folder.record is not None
    assert folder.record.pixel_shape == (1, 8, 8)
    theirs = diffusers.AutoencoderTiny.from_pretrained(trained, local_files_only=True)
    with torch.inference_mode():
        latents = theirs.encode(images).latents
        torch.testing.assert_close(folder.autoencoder.encode(images), latents)
        decoded = theirs.decode(latents).sample
        train = theirs.encode(to_float(digits.train.tensor)).latents
    assert float(psnr(decoded, images).mean()) == pytest.approx(metrics["test_psnr"], abs=1e-3)
    scaled = (train - theirs.config.shift_factor) * theirs.config.scaling_factor  # diffusers' own fields say the same
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-3)
    assert float(scaled.std()) == pytest.approx(1, abs=1e-3)


def test_a_decoder_learns_to_take_noise_away(tmp_path: Path, digits: Dataset, trained: Path) -> None:
    trainer = DecoderTrainer(decoder_recipe(trained, steps=100), digits, tmp_path)
    before = trainer.judge(trainer.data.test)
    outcome = trainer.fit()
    assert outcome.test_noisy_psnr is not None
    assert outcome.test_noisy_psnr > before["noisy_psnr"] + 0.5
    plain, both = open_autoencoder(trained), open_autoencoder(tmp_path / "checkpoint")
    assert both.noisy is not None
    assert both.record is not None
    assert both.record.noisy_decoder_std == 0.5
    for name, value in plain.autoencoder.state_dict().items():
        assert torch.equal(both.autoencoder.state_dict()[name], value)  # the plain one is as it was
        assert torch.equal(both.noisy.state_dict()[name], value) == ("encoder" in name)  # no other part was trained
    # And judged on latents with noise of our own.
    images = to_float(digits.test.tensor)
    with torch.inference_mode():
        latents = both.autoencoder.encode(images)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
        noisy = latents + 0.5 / both.record.latent.scale * noise
        gain = psnr(both.noisy.decode(noisy), images) - psnr(both.autoencoder.decode(noisy), images)
    assert float(gain.mean()) > 0.5


def test_a_decoder_resumes_exactly(tmp_path: Path, digits: Dataset, trained: Path) -> None:
    recipe = decoder_recipe(trained)
    whole = DecoderTrainer(recipe, digits, tmp_path / "a")
    whole.fit()
    DecoderTrainer(recipe, digits, tmp_path / "b").fit(max_steps=7)
    again = DecoderTrainer(recipe, digits, tmp_path / "b")
    assert again.resume()
    again.fit()
    for name, value in whole.average.state_dict().items():
        torch.testing.assert_close(again.average.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("network", [TINY, KL], ids=["tiny", "kl"])
def test_noise_does_not_depend_on_the_scale_of_the_latents(
    tmp_path: Path, digits: Dataset, network: dict[str, Any]
) -> None:
    """The reconstruction through noise, written out: noise is scaled to the latents, and added to their distribution's."""
    model = AutoencoderTrainer(autoencoder_recipe(network), digits, tmp_path).model
    images = to_float(digits.test.tensor[:6])
    noise = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, kl = model(images, noise, 0.3)
        mean, log_variance = model.posterior(images)
        spread = mean.var()
        if log_variance is None:
            variance = 0.09 * spread
            expected_kl = 0.5 * (mean.mean() ** 2 + spread - 1 - spread.log())
        else:
            variance = log_variance.exp() + 0.09 * spread
            normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
            expected_kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
        torch.testing.assert_close(found, model.decode(mean + variance.sqrt() * noise))
    torch.testing.assert_close(kl, expected_kl)


def test_reconstruction_loss_is_the_written_out_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    found, wanted = torch.rand(2, 3, 2, 8, 8, generator=generator)
    error = found - wanted
    small = error.reshape(3, 2, 4, 2, 4, 2).mean((3, 5))
    expected = 0.0
    for each in (error, small):
        steps = (each[:, :, 1:] - each[:, :, :-1]).abs().mean() + (each[..., 1:] - each[..., :-1]).abs().mean()
        expected += float(each.abs().mean() + 0.5 / 2 * steps) / 2
    config = ReconstructionConfig(distance="l1", gradient=0.5, scales=2)
    assert float(reconstruction_loss(found, wanted, config)) == pytest.approx(expected, rel=1e-5)


def test_psnr_of_a_known_error() -> None:
    wanted = torch.zeros(2, 1, 4, 4)
    found = torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 3.0)])  # the second is cut to 1
    torch.testing.assert_close(psnr(found, wanted), torch.tensor([20.0, 6.0206]), rtol=1e-4, atol=1e-4)


def test_recipes_tell_what_they_train(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(autoencoder_recipe().model_dump_json())
    assert isinstance(load_recipe(path), AutoencoderRecipe)
    with pytest.raises(RecipeError, match=r"autoencoder\.tiny\.latent_chanels.*latent_channels"):
        load_recipe(path, ["autoencoder.latent_chanels=3"])
    with pytest.raises(RecipeError, match=r"one width for each of 2 stages"):
        load_recipe(path, ["autoencoder.encoder_block_out_channels=[8, 16]"])
    path.write_text(decoder_recipe(tmp_path).model_dump_json())
    assert isinstance(load_recipe(path), DecoderRecipe)


def test_what_does_not_fit_is_named(tmp_path: Path, digits: Dataset, trained: Path) -> None:
    with pytest.raises(RecipeError, match=r"takes 1 channel\(s\) and sides that are multiples of 16, found.*8x8"):
        deep = {"encoder_block_out_channels": [8] * 5, "decoder_block_out_channels": [8] * 5}
        blocks = {"num_encoder_blocks": [1] * 5, "num_decoder_blocks": [1] * 5}
        AutoencoderTrainer(autoencoder_recipe(TINY | deep | blocks), digits, tmp_path)
    points = load_dataset(PointsSource.model_validate({"kind": "points", "shape": "moons", "count": 200}), tmp_path)
    with pytest.raises(RecipeError, match="an autoencoder learns from images"):
        AutoencoderTrainer(autoencoder_recipe(), points, tmp_path)
    with pytest.raises(CheckpointError, match=r"nowhere: has no config\.json"):
        DecoderTrainer(decoder_recipe(tmp_path / "nowhere"), digits, tmp_path)


def test_folders_that_are_no_autoencoders(tmp_path: Path, trained: Path) -> None:
    for name in ("config.json", "starflow.json", "diffusion_pytorch_model.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(CheckpointError, match="holds UNet2DModel, expected AutoencoderTiny or AutoencoderKL"):
        open_autoencoder(tmp_path)
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(
        CheckpointError, match=r"diffusion_pytorch_model\.safetensors: is not a safetensors file, or damaged"
    ) as caught:
        open_autoencoder(tmp_path)
    assert "\n" not in str(caught.value)
    weights.write_bytes((trained / weights.name).read_bytes())
    record = json.loads((tmp_path / "starflow.json").read_text())
    (tmp_path / "starflow.json").write_text(json.dumps(record | {"noisy_decoder_std": 0.3}))
    with pytest.raises(CheckpointError, match=r"noisy_decoder\.safetensors: missing or damaged"):
        open_autoencoder(tmp_path)


@pytest.mark.parametrize("name", ["emoji", "digits-latent"])
def test_the_examples_fit_together(repository: Path, name: str) -> None:
    """Their noise is the same throughout, and each stage reads what the one before it writes."""
    folder = repository / "examples" / name
    first, second = (load_recipe(folder / f"{stage}.yaml") for stage in ("autoencoder", "decoder"))
    flow = load_flow_recipe(folder / "recipe.yaml")
    assert isinstance(first, AutoencoderRecipe)
    assert isinstance(second, DecoderRecipe)
    assert not isinstance(flow.data, PointsSource)
    assert first.objective.noise_std == second.decoder.noise_std == flow.training.noise_std
    assert second.decoder.autoencoder == Path("out") / name / "autoencoder" / "checkpoint"
    assert flow.data.autoencoder == Path("out") / name / "decoder" / "checkpoint"
    assert flow.model.in_channels == first.autoencoder.latent_channels  # type: ignore[union-attr]
