"""Pixels from latents and latents from pixels, in a bundle: against diffusers itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.backends.onnxruntime.networks import OnnxRuntimeNetworks
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.command_line import main
from starflow.runtime.networks.autoencoder import Autoencoder
from starflow.runtime.plain.bits_per_dim import bits_per_dim
from starflow.runtime.plain.errors import BundleError, ExportError, UsageError
from starflow.runtime.plain.images import to_uint8
from starflow.runtime.sampler import Sampler
from starflow.training.checkpoint import load_autoregressive
from starflow.training.config import ImageRange
from tests.edited_manifest import edit_manifest
from tests.models import class_config, velocity_config, write_checkpoint, write_latent_checkpoint, write_velocity

TINY: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 1,
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}
KL: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 1,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
LATENT = {"img_size": 8}  # latents [1, 8, 8] of pixels [C, 16, 16]


def write(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    network: Any = diffusers.AutoencoderTiny(**TINY) if kind == "tiny" else diffusers.AutoencoderKL(**KL)
    pixels = (network.config.in_channels, 16, 16)
    config = class_config(**LATENT).model_copy(update={"noise_std": 0.3})
    write_latent_checkpoint(folder / "checkpoint", config, network, pixels)
    return folder / "checkpoint"


@pytest.fixture(scope="module", params=["tiny", "kl"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    path = checkpoint.parent / "bundle"
    export_checkpoint(checkpoint, path, ExportOptions(batch=2))
    return path


def diffusers_network(checkpoint: Path, *, noisy: bool = False) -> Any:
    """The autoencoder, read by diffusers."""
    folder = checkpoint / "autoencoder"
    kind = (
        diffusers.AutoencoderKL
        if "AutoencoderKL" in (folder / "config.json").read_text()
        else diffusers.AutoencoderTiny
    )
    network = kind.from_pretrained(folder, local_files_only=True)
    if noisy:
        network.load_state_dict(load_file(folder / "noisy_decoder.safetensors"), strict=False)
    return network.eval()


def test_pixels_are_those_of_diffusers(bundle: Path, checkpoint: Path) -> None:
    with Sampler.open(bundle, threads=1) as sampler:
        spec = sampler.manifest.autoencoder
        assert spec is not None
        assert [decoder.noise_std for decoder in spec.decoders] == pytest.approx([0, 0.3])
        x = sampler.generate(sampler.noise(3), [1, 2, 3])  # a full batch and a padded one
        images = {how: sampler.to_images(x, denoise=how) for how in ("none", "decoder", "auto")}
        sampled = sampler.sample([1, 2, 3], seed=0)
    for how, noisy in (("none", False), ("decoder", True)):
        with torch.inference_mode():
            pixels = diffusers_network(checkpoint, noisy=noisy).decode(torch.from_numpy(x) / 2 + 0.1).sample.numpy()
        assert (
            np.abs(images[how].astype(int) - to_uint8(pixels)).max() <= 1
        )  # of 255: a value on the edge of two levels
    np.testing.assert_array_equal(images["auto"], images["decoder"])
    np.testing.assert_array_equal(sampled, images["decoder"])
    assert (images["none"] != images["decoder"]).any()


def test_graphs_agree_with_diffusers(bundle: Path, checkpoint: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.manifest.autoencoder is not None
    network, sessions = diffusers_network(checkpoint), OnnxRuntimeNetworks(opened)
    autoencoder = Autoencoder(opened, sessions, opened.manifest.autoencoder)
    draw = np.random.default_rng(0)
    pixels = draw.uniform(-1, 1, (3, *opened.manifest.autoencoder.pixel_shape)).astype(np.float32)
    data = draw.standard_normal((3, 1, 8, 8)).astype(np.float32)
    with torch.inference_mode():
        encoded = network.encode(torch.from_numpy(pixels))
        latents = encoded.latents if isinstance(network, diffusers.AutoencoderTiny) else encoded.latent_dist.mode()
        decoded = network.decode(torch.from_numpy(data) / 2 + 0.1).sample.numpy()
    np.testing.assert_allclose(autoencoder.encode(pixels), (latents.numpy() - 0.1) * 2, atol=1e-5)
    np.testing.assert_allclose(autoencoder.decode(data, noisy=False), decoded, atol=1e-4)
    sessions.close()


def test_images_are_scored_through_the_encoder(
    bundle: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    network = diffusers_network(checkpoint)
    channels = network.config.in_channels
    images = draw.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image if channels == 3 else image[..., 0]).save(path)
    z = tmp_path / "z.npy"
    given = [str(bundle), *map(str, paths), "--labels", "1,2", "--noise-std", "0.3", "--seed", "4", "--latents", str(z)]
    assert main(["score", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    pixels = images.transpose(0, 3, 1, 2)[:, :channels].astype(np.float32) / 127.5 - 1
    with torch.inference_mode():
        encoded = network.encode(torch.from_numpy(pixels))
        latents = encoded.latents if channels == 3 else encoded.latent_dist.mode()
        x = (latents - 0.1) * 2 + 0.3 * torch.from_numpy(
            np.random.default_rng(4).standard_normal((2, 1, 8, 8), np.float32)
        )
        model = load_autoregressive(checkpoint)[1]
        expected = bits_per_dim(model.log_likelihood(x, model.encode_labels(torch.tensor([1, 2]))), 64, span=256.0)
    bits = [row["bits_per_dim"] for row in found["images"]]
    np.testing.assert_allclose(bits, expected.numpy(), atol=1e-4)  # per latent dimension, no grey levels
    assert np.load(z).shape == (2, 1, 8, 8)
    assert max(row["round_trip_error"] for row in found["images"]) < 1e-3


def test_latents_are_written_before_they_are_decoded(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents, png = tmp_path / "x.npy", tmp_path / "x.png"
    given = ["--labels", "3", "--latents", str(latents), "--out", str(png), "--denoise", "none"]
    assert main(["sample", str(bundle), *given]) == 0
    with Sampler.open(bundle, threads=1) as sampler:
        expected = sampler.generate(sampler.noise(1), [3])
        image = sampler.to_images(expected, denoise="none")[0]
    np.testing.assert_array_equal(np.load(latents), expected)
    pixels = np.asarray(Image.open(png)).reshape(image.shape)
    np.testing.assert_array_equal(pixels, image)
    assert main(["inspect", str(bundle)]) == 0
    channels = image.shape[-1]
    assert f"latents to {channels}x16x16, one for latents with noise of 0.3, encoder" in capsys.readouterr().out


def test_a_wrong_image_or_latent_is_named(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "letter.png"
    text.write_text("no image")
    assert main(["score", str(bundle), str(text), "--labels", "1"]) == 2
    assert "letter.png: is not an image" in capsys.readouterr().err
    small = tmp_path / "small.png"
    Image.new("RGB", (8, 8)).save(small)
    assert main(["score", str(bundle), str(small), "--labels", "1"]) == 2
    assert "is 8x8, this bundle makes 16x16" in capsys.readouterr().err
    broken = tmp_path / "broken.npy"
    np.save(broken, np.full((1, 1, 8, 8), np.nan, np.float32))
    assert main(["score", str(bundle), str(broken), "--labels", "1"]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith("data holds NaN or infinite values")
    with Sampler.open(bundle, threads=1) as sampler:
        with pytest.raises(UsageError, match="data holds NaN or infinite values"):
            sampler.to_images(np.load(broken))
        with pytest.raises(UsageError, match=r"data has shape \[1, 3, 8, 8\]"):
            sampler.to_images(np.zeros((1, 3, 8, 8)))
        with pytest.raises(UsageError, match=r"pixels has shape \[1, 2, 16, 16\]"):
            sampler.encode_images(np.zeros((1, 2, 16, 16)))


def test_a_damaged_decoder_is_found(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    weights = copy / "graphs" / "weights" / "autoencoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"autoencoder\.safetensors: has"):
        Bundle.open(copy)


def test_export_takes_another_autoencoder_or_none(checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, tmp_path / "none", ExportOptions(autoencoder="none"))
    with Sampler.open(tmp_path / "none", threads=1) as sampler:
        assert sampler.manifest.image.mode == "latent"
        x = sampler.generate(sampler.noise(1), [1])
        with pytest.raises(UsageError, match="latents without a decoder"):
            sampler.to_images(x)
        with pytest.raises(UsageError, match="latents without a decoder"):
            sampler.encode_images(np.zeros((1, 3, 16, 16)))
        with pytest.raises(UsageError, match="denoise 'decoder': this bundle has no way of denoising"):
            sampler.generate(sampler.noise(1), [1], denoise="decoder")
    foreign = tmp_path / "foreign"
    four: Any = diffusers.AutoencoderTiny(**TINY | {"latent_channels": 4})
    four.save_pretrained(foreign)
    with pytest.raises(ExportError, match=r"its latents have 4 channels, but the flow's data have 1; .*--autoencoder"):
        export_checkpoint(checkpoint, tmp_path / "b", ExportOptions(autoencoder=str(foreign)))
    assert not (tmp_path / "b").exists()
    shutil.copytree(checkpoint, tmp_path / "bare", ignore=shutil.ignore_patterns("autoencoder"))
    with pytest.raises(ExportError, match=r"its data are latents, but it has no autoencoder/.*--autoencoder none"):
        export_checkpoint(tmp_path / "bare", tmp_path / "b")


def test_pixels_need_no_autoencoder(tiny_checkpoint: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the data of this model are L images"):
        options = ExportOptions(autoencoder=str(checkpoint / "autoencoder"))
        export_checkpoint(tiny_checkpoint, tmp_path / "b", options)


def test_half_weights_stay_half_and_sizes_share_them(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, "tiny")
    folder = checkpoint / "autoencoder"
    network = diffusers_network(checkpoint)
    shutil.rmtree(folder)
    network.half().save_pretrained(folder)
    config = json.loads((checkpoint / "config.json").read_text())
    export_checkpoint(checkpoint, tmp_path / "b", ExportOptions(shape=(8, 8), other_shapes=((4, 12),)))
    bundle = Bundle.open(tmp_path / "b")
    weights = tmp_path / "b" / "graphs" / "weights" / "autoencoder.safetensors"
    stored = {name: value for name, value in load_file(weights).items() if not name.startswith("_padding")}
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert sum(value.numel() for value in stored.values()) == sum(value.numel() for value in network.parameters())
    assert config["autoencoder"]["pixel_shape"] == [3, 16, 16]
    with Sampler.open(tmp_path / "b", shape=(4, 12), threads=1) as sampler:
        x = sampler.generate(sampler.noise(1), [1])
        images = sampler.to_images(x)
    assert bundle.manifest.autoencoder is not None
    with torch.inference_mode():
        pixels = network.float().decode(torch.from_numpy(x) / 2 + 0.1).sample.numpy()
    assert images.shape == (1, 8, 24, 3)
    assert np.abs(images.astype(int) - to_uint8(pixels)).max() <= 1


def test_verify_compares_it_with_pytorch(
    checkpoint: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(bundle), "--checkpoint", str(checkpoint), "--variants", "cpu-fp32", "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["measurements"] if row["kind"] == "pixels"]
    assert {row["route"] for row in rows} == {"encoder", "decoder", "noisy decoder"}
    assert all(0 < row["relative"] < 1e-5 for row in rows)
    assert main(["verify", str(bundle)]) == 0
    assert "autoencoder: it has no reference here; name --checkpoint" in " ".join(capsys.readouterr().out.split())
    # A wrong decoder: the graph of the noisy decoder replaces that of the plain one.
    swapped = shutil.copytree(bundle, tmp_path / "swapped")

    def swap(manifest: dict[str, Any]) -> None:
        plain, noisy = manifest["autoencoder"]["decoders"]
        plain["network"], noisy["network"] = noisy["network"], plain["network"]

    edit_manifest(swapped, swap)
    assert main(["verify", str(swapped), "--checkpoint", str(checkpoint), "--variants", "cpu-fp32"]) == 1
    assert "noisy decoder" in capsys.readouterr().out


def test_a_continuous_flow_has_decoders_too(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, "tiny")
    config = json.loads((checkpoint / "config.json").read_text())
    folder = tmp_path / "continuous"
    write_velocity(folder, velocity_config())
    own = json.loads((folder / "config.json").read_text())
    taken = {field: config[field] for field in ("latent", "image", "autoencoder")}
    (folder / "config.json").write_text(json.dumps(own | taken))
    shutil.copytree(checkpoint / "autoencoder", folder / "autoencoder")
    export_checkpoint(folder, tmp_path / "b", ExportOptions(batch=2))
    with Sampler.open(tmp_path / "b", threads=1) as sampler:
        x = sampler.generate(sampler.noise(3), [0, 1, 2])
        images = sampler.sample([0, 1, 2], seed=0)
    with torch.inference_mode():
        pixels = diffusers_network(checkpoint, noisy=True).decode(torch.from_numpy(x) / 2 + 0.1).sample.numpy()
    assert np.abs(images.astype(int) - to_uint8(pixels)).max() <= 1


@pytest.mark.slow
def test_stable_diffusions_autoencoder_at_full_size(tmp_path: Path) -> None:
    """84 million parameters, random: the graphs agree, and every weight is there once."""
    stages = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
    }
    torch.manual_seed(0)
    network: Any = diffusers.AutoencoderKL(latent_channels=4, layers_per_block=2, **stages)
    network.eval()
    network.save_pretrained(tmp_path / "vae")
    config = class_config(in_channels=4, img_size=8).model_copy(update={"image": ImageRange(mode="latent")})
    write_checkpoint(tmp_path / "c", config)
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(autoencoder=str(tmp_path / "vae")))
    with Sampler.open(tmp_path / "b", threads=1) as sampler:
        assert sampler.pixel_shape == (3, 64, 64)
        x = sampler.generate(sampler.noise(1), [1])
        images = sampler.to_images(x)
        spec = sampler.manifest.autoencoder
        assert spec is not None
        stored = spec.decoders[0].network.weights.bytes
    parameters = sum(value.numel() for value in network.parameters())
    assert 4 * parameters <= stored < 4 * parameters + 2**20
    with torch.inference_mode():
        pixels = network.decode(torch.from_numpy(x)).sample.numpy()
    assert np.abs(images.astype(int) - to_uint8(pixels)).max() <= 1
