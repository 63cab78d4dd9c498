"""A configuration that wants more than the file holds, or than any model has, is refused before it costs anything."""

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.plain.errors import CheckpointError, DataError, RecipeError, StarflowError, UsageError
from starflow.training.autoencoder.config import TinyConfig
from starflow.training.autoencoder.folder import AutoencoderRecord, open_autoencoder, save_autoencoder
from starflow.training.autoencoder.network import build_autoencoder
from starflow.training.checkpoint import load_flow, open_checkpoint
from starflow.training.config import CheckpointConfig, LatentScaling
from starflow.training.data.dataset import load_dataset
from starflow.training.families import build_flow
from starflow.training.recipe import Recipe, load_recipe
from starflow.training.text.text_encoder import load_encoder
from starflow.training.trainer import Trainer
from tests.models import class_config, velocity_config


@contextmanager
def costs_little() -> Iterator[None]:
    """At most ten seconds of the processor and 600 MiB: PyTorch's meta device takes some for every layer."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10  # KiB


Change = Callable[[dict[str, Any]], object]
SIZES: dict[str, Change] = {
    "blocks": lambda c: c["model"].update(num_blocks=10**12),
    "layers": lambda c: c["model"].update(layers_per_block=[10**9]),
    "layers in all": lambda c: c["model"].update(num_blocks=256, layers_per_block=[1000]),
    "a list of layers": lambda c: c["model"].update(num_blocks=10**6, layers_per_block=[1] * 10**6),
    "width": lambda c: c["model"].update(channels=10**12),
    "patches": lambda c: c["model"].update(img_size=2**40),
    "tokens": lambda c: c["model"].update(txt_size=10**9),
    "classes": lambda c: (c["model"].update(txt_dim=10**9 + 1), c["conditioning"].update(num_classes=10**9)),
    "hidden": lambda c: c["model"].update(
        top_block_override={"channels": 32, "num_layers": 2, "num_heads": 1, "head_dim": 32, "expansion": 1e308}
    ),
    "tokens of a class": lambda c: c["model"].update(txt_size=3),
    "infinity": lambda c: c.update(noise_std="inf"),
    "scale": lambda c: c.update(latent={"scale": 0.0, "shift": 0.0}),
    "clip": lambda c: c["model"].update(soft_clip=1e300),
}


@pytest.mark.parametrize("size", SIZES)
def test_sizes_no_model_has_are_refused(size: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    content = json.loads((folder / "config.json").read_text())
    SIZES[size](content)
    (folder / "config.json").write_text(json.dumps(content))
    with costs_little(), pytest.raises(CheckpointError, match=r"config\.json") as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


# The largest models that a configuration may name: terabytes of weights.
LARGEST: dict[str, CheckpointConfig] = {
    "starflow": class_config(
        channels=1 << 17, head_dim=128, img_size=1024, patch_size=1, num_blocks=256, layers_per_block=(4,)
    ),
    "continuous-flow": velocity_config(channels=1 << 17, head_dim=128, img_size=1024, patch_size=1, layers=1024),
}


@pytest.mark.parametrize(("family", "read"), [("starflow", "load"), ("continuous-flow", "export")])
def test_the_largest_model_is_compared_with_the_file_first(family: str, read: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(LARGEST[family].model_dump_json())
    save_file({"proj_in.weight": torch.ones(2, 2)}, folder / "model.safetensors")
    with costs_little(), pytest.raises(CheckpointError, match="found no such tensor, expected shape"):
        load_flow(folder) if read == "load" else export_checkpoint(folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def recipe(**changes: Any) -> Recipe:
    model = class_config().model.model_dump() | {"txt_size": 0, "txt_dim": 0} | changes
    data, training = {"kind": "digits8"}, {"steps": 1, "batch_size": 8}
    return Recipe.model_validate({"model": model, "data": data, "training": training})


def test_a_recipe_for_more_memory_than_there_is(tmp_path: Path) -> None:
    asked = recipe(channels=1 << 16, layers_per_block=(100, 100))
    data = load_dataset(asked.data, tmp_path)
    with costs_little(), pytest.raises(UsageError, match=r"a model of .* parameters takes .* GiB of memory, but only"):
        Trainer(asked, data, tmp_path / "run")


def test_a_model_without_memory_draws_nothing(tmp_path: Path) -> None:
    """The size is found on a model without memory, which must not change the random weights."""
    asked = recipe()
    torch.manual_seed(asked.training.seed)
    expected = build_flow(asked.model).state_dict()
    found = Trainer(asked, load_dataset(asked.data, tmp_path), tmp_path / "run").model.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "training",
    [
        {"steps": 10**20},
        {"steps": 1, "batch_size": 10**12},
        {"steps": 1, "threads": 10**5},
        {"steps": 1, "shift": 10**8},
        {"steps": 1, "learning_rate": float("inf")},
        {"steps": 1, "learning_rate": float("nan")},
    ],
)
def test_settings_beyond_reason(training: dict[str, Any]) -> None:
    content = recipe().model_dump() | {"training": training}
    with pytest.raises(ValueError, match="training"):
        Recipe.model_validate(content)


@pytest.mark.parametrize("device", ["xla:99", "meta", "mps", "vulkan"])
def test_devices_that_nothing_trains_on(device: str, tmp_path: Path) -> None:
    asked = recipe()
    asked = asked.model_copy(update={"training": asked.training.model_copy(update={"device": device})})
    with pytest.raises(RecipeError, match=r"training\.device: found .* expected auto, cpu or cuda"):
        Trainer(asked, load_dataset(asked.data, tmp_path), tmp_path / "run")


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


WIDE = {"encoder_block_out_channels": [16384, 16384], "decoder_block_out_channels": [16384, 16384]}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"encoder_block_out_channels": [10**6, 10**6]}, "encoder_block_out_channels: found"),
        ({"num_encoder_blocks": [10**9, 1]}, "num_encoder_blocks: found"),
        ({"num_encoder_blocks": [1] * 1000}, "num_encoder_blocks: found"),
        ({"latent_channels": 10**9}, "latent_channels: found"),
        (WIDE, r"config.json describes [\d,]+ parameters, the weights file holds"),
    ],
)
def test_autoencoders_that_want_more_than_their_file_holds(changes: dict[str, Any], found: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {f"{side}_block_out_channels": (8, 8) for side in ("encoder", "decoder")}
    sizes |= {f"num_{side}_blocks": (1, 1) for side in ("encoder", "decoder")}
    record = AutoencoderRecord(pixel_shape=(1, 8, 8), latent=LatentScaling(scale=2.0))
    save_autoencoder(tmp_path / "a", build_autoencoder(TinyConfig(kind="tiny", latent_channels=3, **sizes), 1), record)
    open_autoencoder(tmp_path / "a")
    change_json(tmp_path / "a/config.json", **changes)
    with costs_little(), pytest.raises(CheckpointError, match=found):
        open_autoencoder(tmp_path / "a")


def test_a_damaged_autoencoder_is_told_by_its_digest(tmp_path: Path) -> None:
    network = build_autoencoder(TinyConfig(kind="tiny", latent_channels=3), 1)
    record = AutoencoderRecord(pixel_shape=(1, 8, 8), latent=LatentScaling(scale=2.0), noisy_decoder_std=0.1)
    save_autoencoder(tmp_path / "a", network, record, noisy=network)
    for name in ("diffusion_pytorch_model.safetensors", "noisy_decoder.safetensors"):
        content = (tmp_path / "a" / name).read_bytes()
        (tmp_path / "a" / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=rf"{name}: is damaged"):
            open_autoencoder(tmp_path / "a")
        (tmp_path / "a" / name).write_bytes(content)
    open_autoencoder(tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"vocab_size": 10**9}, "vocab_size: found 1000000000, expected at most"),
        ({"num_layers": 10**9}, "num_layers: found 1000000000, expected at most 1,024"),
        ({"d_model": 100_000, "d_ff": 100_000}, r"describes [\d,]+ parameters, the weights have [\d,]+ bytes"),
    ],
)
def test_text_encoders_that_want_more_than_their_file_holds(
    changes: dict[str, Any], found: str, t5_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(t5_folder, tmp_path / "t5"))
    change_json(folder / "config.json", **changes)
    with costs_little(), pytest.raises(DataError, match=found):
        load_encoder(folder, 8)


def test_code_in_a_text_encoder_is_not_asked_for(t5_folder: Path, tmp_path: Path) -> None:
    """transformers would ask on the terminal whether to run it."""
    folder = Path(shutil.copytree(t5_folder, tmp_path / "t5"))
    names = {"AutoConfig": "code.Config", "AutoModelForTextEncoding": "code.Model"}
    change_json(folder / "config.json", model_type="unheard-of", auto_map=names)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'evidence')!r}, 'w')")
    with pytest.raises(DataError):
        load_encoder(folder, 8)
    assert not (tmp_path / "evidence").exists()


LARGE: dict[str, tuple[dict[str, Any], int, str]] = {
    "than any image": ({"size": 16384}, 2, "size: found 16384, expected 8,192 or less"),
    "than the model's": (
        {"size": 8192},
        2,
        r"takes 1 channel\(s\) of 8x8, but the data are 3 channel\(s\) of 8192x8192",
    ),
    "than the memory": ({"size": 8192, "autoencoder": "absent"}, 20_000, "20000 images takes .* scale them down"),
}


@pytest.mark.parametrize("larger", LARGE)
def test_images_scaled_beyond_reason(larger: str, tmp_path: Path) -> None:
    """No image is read, so it does not matter that these are none."""
    changes, count, found = LARGE[larger]
    for number in range(count):
        (tmp_path / f"{number}.png").touch()
    data = {"kind": "folder", "path": str(tmp_path)} | changes
    training = {"steps": 1, "batch_size": 1}
    content = {"model": class_config().model.model_dump(), "data": data, "training": training}
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    with costs_little(), pytest.raises(UsageError, match=found):
        load_dataset(load_recipe(tmp_path / "recipe.yaml").data, tmp_path / "cache")


@pytest.mark.parametrize(
    "options",
    [
        ExportOptions(batch=10**12),
        ExportOptions(shape=(100_000, 100_000)),
        ExportOptions(max_chunk=10**12),
    ],
)
def test_exports_beyond_reason(options: ExportOptions, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with costs_little(), pytest.raises(StarflowError):
        export_checkpoint(tiny_checkpoint, tmp_path / "bundle", options)
    assert not list(tmp_path.iterdir())
