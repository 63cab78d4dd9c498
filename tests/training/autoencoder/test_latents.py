"""Flows over latents: encoded once, scaled, mirrored, decoded; the checkpoint carries the autoencoder."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from starflow.runtime.plain.errors import CheckpointError, RecipeError
from starflow.training.autoencoder.config import TinyConfig
from starflow.training.autoencoder.folder import AutoencoderRecord, open_autoencoder, save_autoencoder
from starflow.training.autoencoder.latents import allocate_array
from starflow.training.autoencoder.network import build_autoencoder
from starflow.training.checkpoint import load_autoregressive
from starflow.training.config import LatentScaling
from starflow.training.data.dataset import load_dataset
from starflow.training.data.samples import Dataset, to_float
from starflow.training.data.source import Digits8Source
from starflow.training.random_streams import VIEWS, generator_for
from starflow.training.recipe import Recipe
from starflow.training.trainer import Trainer
from tests.training.data.streamed import digits as random_digits
from tests.training.data.streamed import write_shards

NETWORK = TinyConfig(
    kind="tiny",
    latent_channels=3,
    encoder_block_out_channels=(8, 8),
    decoder_block_out_channels=(8, 8),
    num_encoder_blocks=(1, 1),
    num_decoder_blocks=(1, 1),
)
MODEL: dict[str, Any] = {
    "family": "starflow",
    "in_channels": 3,
    "img_size": 4,
    "patch_size": 2,
    "channels": 16,
    "head_dim": 16,
    "num_blocks": 2,
    "layers_per_block": [1, 1],
    "rope": True,
    "sos": True,
    "use_softplus": True,
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(Digits8Source.model_validate({"kind": "digits8"}), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random one, whose record states a scale that was not measured."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("autoencoder") / "checkpoint"
    record = AutoencoderRecord(pixel_shape=(1, 8, 8), latent=LatentScaling(scale=20.0, shift=-0.01))
    save_autoencoder(folder, build_autoencoder(NETWORK, 1), record)
    return folder


def recipe(
    autoencoder: Path, model: dict[str, Any] = MODEL, data: dict[str, Any] | None = None, **training: Any
) -> Recipe:
    source = {"kind": "digits8", "autoencoder": str(autoencoder), **(data or {})}
    settings = {"steps": 10, "batch_size": 64, "warmup_steps": 2, "threads": 1, "noise_std": 0.3} | training
    return Recipe.model_validate({"model": model, "data": source, "training": settings})


def test_cached_latents_are_those_of_the_encoder(tmp_path: Path, digits: Dataset, autoencoder: Path) -> None:
    trainer = Trainer(recipe(autoencoder, flip=True), digits, tmp_path)
    encoder, views = open_autoencoder(autoencoder).autoencoder, trainer.data.train.views
    assert views is not None
    with torch.inference_mode():
        for found, images in (
            (trainer.data.train.tensor, digits.train.tensor),
            (views[:, 0], digits.train.tensor.flip(3)),
            (trainer.data.test.tensor, digits.test.tensor),
        ):
            assert found is not None
            torch.testing.assert_close(found.float(), encoder.encode(to_float(images)), rtol=1e-3, atol=1e-5)
    cache = tmp_path / "latents" / "train.npy"
    assert np.load(cache).dtype == np.float16
    stamp = cache.stat().st_mtime_ns
    Trainer(recipe(autoencoder, flip=True), digits, tmp_path)
    assert cache.stat().st_mtime_ns == stamp  # used again
    Trainer(recipe(autoencoder), digits, tmp_path)
    assert cache.stat().st_mtime_ns != stamp  # other sets of images


def test_the_flow_sees_scaled_latents_and_their_mirror_images(
    tmp_path: Path, digits: Dataset, autoencoder: Path
) -> None:
    trainer = Trainer(recipe(autoencoder, flip=True, noise_std=0.0), digits, tmp_path)
    batch = trainer.batch_at(0)
    x, _ = trainer.prepare(batch, torch.Generator().manual_seed(0))
    assert batch.views is not None
    plain, mirrored = ((values.float() + 0.01) * 20 for values in (batch.values, batch.views[:, 0]))
    chosen = [(torch.equal(a, b), torch.equal(a, c)) for a, b, c in zip(x, plain, mirrored, strict=True)]
    assert all(one != other for one, other in chosen)
    assert 16 < sum(one for one, _ in chosen) < 48


def test_latents_are_augmented_in_pixels_before_they_are_encoded(
    tmp_path: Path, digits: Dataset, autoencoder: Path
) -> None:
    settings: dict[str, Any] = {"crop": 0.5, "shift": 2, "flip": True, "colour": 0.4, "views": 3}
    few = replace(digits, train=digits.train[torch.arange(70)])
    trainer = Trainer(recipe(autoencoder, MODEL, None, noise_std=0.0, **settings), few, tmp_path)
    views = trainer.data.train.views
    assert views is not None and views.shape == (70, 3, 3, 4, 4) and views.dtype == torch.float16
    # The views of image 16, the first of the second chunk of 16, made and encoded here.
    augmentation, encoder = trainer.training.augmentation, open_autoencoder(autoencoder).autoencoder
    for index in range(3):
        images = augmentation(few.train.tensor[16:32], generator_for(0, VIEWS, 16 * 3 + index))
        with torch.inference_mode():
            expected = encoder.encode(to_float(images))
        torch.testing.assert_close(views[16:32, index].float(), expected, rtol=1e-3, atol=1e-4)
    assert not torch.equal(views[:, 0], views[:, 1])
    x, _ = trainer.prepare(trainer.batch_at(0), torch.Generator().manual_seed(0))
    batch = trainer.batch_at(0)
    assert batch.views is not None
    options = torch.cat([batch.values[:, None], batch.views], dim=1)
    chosen = (trainer.data.as_float(options) == x[:, None]).flatten(2).all(2)
    assert chosen.any(1).all()
    assert (chosen.sum(0) > 4).all()  # each of the four about 16 times


def test_scale_and_shift_are_given_or_recorded_or_measured(tmp_path: Path, digits: Dataset, autoencoder: Path) -> None:
    assert Trainer(recipe(autoencoder), digits, tmp_path).checkpoint_config.latent == LatentScaling(
        scale=20, shift=-0.01
    )
    given = recipe(autoencoder, data={"latent_scale": 2.0, "latent_shift": 0.5})
    assert Trainer(given, digits, tmp_path).checkpoint_config.latent == LatentScaling(scale=2, shift=0.5)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (foreign / name).write_bytes((autoencoder / name).read_bytes())
    trainer = Trainer(recipe(foreign), digits, tmp_path)
    x = trainer.data.as_float(trainer.data.train.tensor)
    assert float(x.mean()) == pytest.approx(0, abs=1e-3)
    assert float(x.std()) == pytest.approx(1, abs=1e-3)


def test_a_run_leaves_a_checkpoint_with_its_autoencoder(tmp_path: Path, digits: Dataset, autoencoder: Path) -> None:
    trainer = Trainer(recipe(autoencoder), digits, tmp_path)
    outcome = trainer.fit()
    config, model = load_autoregressive(tmp_path / "checkpoint")
    assert config.autoencoder is not None
    assert config.autoencoder.pixel_shape == (1, 8, 8)
    assert config.image.mode == "L"
    copied = tmp_path / "checkpoint" / "autoencoder" / "diffusion_pytorch_model.safetensors"
    assert copied.read_bytes() == (autoencoder / copied.name).read_bytes()
    sheet = trainer.sample_sheet()
    assert sheet.shape == (4 * 10 - 2, 8 * 10 - 2, 1)  # pixels of 8x8, not latents of 4x4
    # Bits of the noised latents, per latent dimension and without grey levels: the density's own.
    generator = torch.Generator().manual_seed(5)
    x = trainer.data.as_float(trainer.data.test.tensor)
    x = x + 0.3 * torch.randn(x.shape, generator=generator)
    with torch.inference_mode():
        bits = -model.log_likelihood(x) / 48 / np.log(2)
    assert outcome.test_bits_per_dim == pytest.approx(float(bits.mean()), abs=0.02)


def test_a_latent_run_resumes_exactly(tmp_path: Path, digits: Dataset, autoencoder: Path) -> None:
    whole = Trainer(recipe(autoencoder, flip=True), digits, tmp_path / "a")
    whole.fit()
    Trainer(recipe(autoencoder, flip=True), digits, tmp_path / "b").fit(max_steps=4)
    again = Trainer(recipe(autoencoder, flip=True), digits, tmp_path / "b")
    assert again.resume()
    again.fit()
    for name, value in whole.average.state_dict().items():
        torch.testing.assert_close(again.average.state_dict()[name], value, rtol=0, atol=0)


def test_a_run_keeps_its_autoencoder(tmp_path: Path, digits: Dataset, autoencoder: Path) -> None:
    """Whatever happens to the folder that was named, a checkpoint's latents and decoder belong together."""
    named = tmp_path / "named"
    shutil.copytree(autoencoder, named)
    trainer = Trainer(recipe(named), digits, tmp_path / "run")
    torch.manual_seed(1)
    record = AutoencoderRecord(pixel_shape=(1, 8, 8), latent=LatentScaling(scale=20.0, shift=-0.01))
    save_autoencoder(named, build_autoencoder(NETWORK, 1), record)
    trainer.fit(max_steps=2)
    copied = tmp_path / "run" / "checkpoint" / "autoencoder" / "diffusion_pytorch_model.safetensors"
    assert copied.read_bytes() == (autoencoder / copied.name).read_bytes()
    with pytest.raises(RecipeError, match="belongs to other data: the latents changed"):
        Trainer(recipe(named), digits, tmp_path / "run").resume()


def test_what_does_not_fit_is_named(tmp_path: Path, digits: Dataset, autoencoder: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"model: takes 1 channel\(s\) of 8x8, but the data are 3 channel\(s\) of 4x4"
    ):
        Trainer(recipe(autoencoder, MODEL | {"in_channels": 1, "img_size": 8}), digits, tmp_path)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        Trainer(recipe(tmp_path / "nowhere"), digits, tmp_path)
    parts = (replace(part, values=part.tensor.expand(-1, 3, -1, -1)) for part in (digits.train, digits.validation))
    rgb = replace(digits, train=next(parts), validation=next(parts), test=digits.test).without_conditions()
    with pytest.raises(RecipeError, match=r"data\.autoencoder: autoencoder: takes 1 channel"):
        Trainer(recipe(autoencoder), rgb, tmp_path)


def test_latents_have_their_room_before_they_are_written(tmp_path: Path) -> None:
    """A disk that is full while a mapping is written ends the process with a signal."""
    array = allocate_array(tmp_path / "latents.npy", (1000, 3, 32, 32))
    status = (tmp_path / "latents.npy").stat()
    assert status.st_blocks * 512 >= status.st_size > array.nbytes
    assert array.shape == (1000, 3, 32, 32) and array.dtype == np.float16


def test_latents_of_images_on_disk_are_those_of_images_in_memory(tmp_path: Path, autoencoder: Path) -> None:
    images, labels = random_digits(60)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    shards = write_shards(tmp_path / "shards", images, cls=labels.tolist())
    streamed = {"kind": "webdataset", "shards": shards, "mode": "L", "size": 8}
    found = {}
    for name, source in (("npz", {"kind": "npz", "path": str(tmp_path / "data.npz")}), ("tar", streamed)):
        settings = recipe(autoencoder, data=source, flip=True, batch_size=16)
        data = load_dataset(settings.data, tmp_path)
        found[name] = Trainer(settings, data, tmp_path / name).data
    for part in ("train", "validation", "test"):
        one, other = (getattr(found[name], part) for name in ("npz", "tar"))
        torch.testing.assert_close(other.values, one.values, rtol=0, atol=0)
        torch.testing.assert_close(other.views, one.views, rtol=0, atol=0)
    stamp = (tmp_path / "tar/latents/train.npy").stat().st_mtime_ns
    Trainer(settings, data, tmp_path / "tar")
    assert (tmp_path / "tar/latents/train.npy").stat().st_mtime_ns == stamp  # used again
    write_shards(tmp_path / "shards", 255 - images[:, ::-1] // 4, cls=labels.tolist())
    Trainer(settings, load_dataset(settings.data, tmp_path), tmp_path / "tar")
    assert (tmp_path / "tar/latents/train.npy").stat().st_mtime_ns != stamp  # other images
