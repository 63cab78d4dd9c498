"""Captions become features as the published code makes them; what is said about folders that hold no text encoder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from starflow.runtime.plain.errors import DataError, StarflowError
from starflow.training.checkpoint import open_checkpoint
from starflow.training.config import TextEncoding
from starflow.training.data.dataset import load_dataset
from starflow.training.data.samples import Dataset
from starflow.training.data.source import FolderSource, NpzSource
from starflow.training.recipe import Recipe
from starflow.training.text.captions import caption_template
from starflow.training.text.text_encoder import encoder_folder, load_encoder, load_tokenizer
from starflow.training.text.text_features import caption_features
from starflow.training.trainer import Trainer
from tests.text_encoders import CAPTIONS, MINILM, WORDS, published_features, write_t5

CPU = torch.device("cpu")


@pytest.mark.parametrize("encoder", ["t5", MINILM])
def test_features_are_those_of_the_published_code(
    encoder: str, t5_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(t5_folder) if encoder == "t5" else encoder
    found = caption_features([*CAPTIONS, CAPTIONS[0]], TextEncoding(encoder=name), 8, tmp_path / "features.npz")
    _, expected = published_features(CAPTIONS, encoder_folder(name), 8)
    np.testing.assert_allclose(found.padded()[:-1].numpy(), expected, atol=2e-5)
    assert torch.equal(found.padded()[0], found.padded()[-1])
    assert len(found.rows) == found.lengths[:-1].sum()  # equal captions are kept once
    assert "1 of 5 captions have more than 8 tokens and are cut" in capsys.readouterr().err


def test_template_is_that_of_the_published_code() -> None:
    assert caption_template() == "{caption}"
    assert caption_template(fps=0) == "An image:\n{caption}\n"
    everything = "Noise Level 300:\nA video with 16 fps:\n{caption}\n\n in a 3:2 aspect ratio.\n"
    assert caption_template(aspect_ratio="3:2", fps=16, noise_level=300) == everything


def test_template_stands_around_every_caption(t5_folder: Path, tmp_path: Path) -> None:
    text = TextEncoding(encoder=str(t5_folder), template=caption_template(fps=0))
    found = caption_features(["a {caption} cat", ""], text, 12, tmp_path / "features.npz")
    _, expected = published_features(["An image:\na {caption} cat\n", "An image:\n\n"], t5_folder, 12)
    np.testing.assert_allclose(found.padded().numpy(), expected, atol=2e-5)
    with pytest.raises(ValueError, match=r"contains \{caption\} once"):
        TextEncoding(encoder="x", template="no place for it")


def test_features_are_computed_once(t5_folder: Path, tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "t5")
    text, cache = TextEncoding(encoder=str(folder)), tmp_path / "run" / "features.npz"
    first = caption_features(CAPTIONS, text, 8, cache)
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(b"\0" * size)
    assert torch.equal(caption_features(CAPTIONS, text, 8, cache).padded(), first.padded())
    with pytest.raises(DataError, match="cannot be read as a text encoder"):
        caption_features(["another one"], text, 8, cache)
    with pytest.raises(DataError, match="cannot be read as a text encoder"):
        caption_features(CAPTIONS, text, 9, cache)


def captioned_npz(path: Path, encoder: Path, **changes: object) -> NpzSource:
    captions = np.array([" ".join(WORDS[i : i + 2]) for i in range(6)])
    arrays = {"images": np.zeros((6, 8, 8), np.uint8), "captions": captions, "labels": np.arange(6)} | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})  # type: ignore[arg-type]
    return NpzSource.model_validate({"kind": "npz", "path": path, "encoder": str(encoder), "tokens": 5, "holdout": 0.5})


def assert_captioned(data: Dataset, captions: list[str], encoder: Path) -> None:
    """The conditions of the three parts are the features of `captions`, in this order, and null those of the empty one."""
    _, expected = published_features([*captions, ""], encoder, 5)
    assert data.null is not None
    found = [data.null[None]]
    for part in (data.test, data.validation, data.train):
        condition = part.to(CPU).condition
        assert condition is not None
        found.insert(0, condition)
    np.testing.assert_allclose(torch.cat(found).numpy(), expected, atol=2e-5)
    assert (data.conditioning.kind, data.conditioning.tokens, data.conditioning.width) == ("features", 5, 32)


def test_npz_with_captions(t5_folder: Path, tmp_path: Path) -> None:
    test = {"test_images": np.zeros((2, 8, 8), np.uint8), "test_captions": np.array(["sun", "a cat"])}
    test |= {"validation_images": np.zeros((1, 8, 8), np.uint8), "validation_captions": np.array(["two cats"])}
    data = load_dataset(captioned_npz(tmp_path / "a.npz", t5_folder, **test), tmp_path / "run")
    assert_captioned(data, [*(" ".join(WORDS[i : i + 2]) for i in range(6)), "two cats", "sun", "a cat"], t5_folder)
    assert data.text == TextEncoding(encoder=str(t5_folder))


def test_folder_with_captions(t5_folder: Path, tmp_path: Path) -> None:
    captions = [f"{word} tree" for word in WORDS[:4]]
    lines = [json.dumps({"file": f"{index}.png", "caption": caption}) for index, caption in enumerate(captions)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    for index in range(4):
        Image.new("L", (8, 8), index).save(tmp_path / f"{index}.png")
    source = FolderSource.model_validate(
        {
            "kind": "folder",
            "path": tmp_path,
            "mode": "L",
            "captions": tmp_path / "captions.jsonl",
            "encoder": str(t5_folder),
        }
        | {"tokens": 5, "holdout": 0.5}
    )
    data = load_dataset(source, tmp_path / "run")
    parts = (data.train, data.validation, data.test)
    order = [int(image[0, 0, 0]) for part in parts for image in part.tensor]
    assert_captioned(data, [captions[index] for index in order], t5_folder)  # images and captions stay together


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"captions": None}, "data.encoder needs captions, but there is no array named captions"),
        ({"captions": np.arange(6)}, r"captions is int64 \(6,\), expected str \[N\] with N = 6"),
        ({"captions": np.array(["a"])}, r"expected str \[N\] with N = 6"),
        ({"test_images": np.zeros((2, 8, 8), np.uint8)}, "no array named test_captions"),
    ],
)
def test_bad_captions_in_npz(t5_folder: Path, tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        load_dataset(captioned_npz(tmp_path / "a.npz", t5_folder, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_training_on_captions(t5_folder: Path, tmp_path: Path) -> None:
    source = captioned_npz(tmp_path / "a.npz", t5_folder).model_copy(update={"fps": 0})
    model = {"family": "starflow", "in_channels": 1, "img_size": 8, "patch_size": 2, "channels": 32, "head_dim": 32}
    model |= {"num_blocks": 2, "layers_per_block": 1, "txt_size": 5, "txt_dim": 32, "rope": True, "sos": True}
    recipe = Recipe.model_validate(
        {"model": model, "data": source.model_dump(), "training": {"steps": 2, "batch_size": 2, "threads": 1}}
    )
    trainer = Trainer(recipe, load_dataset(recipe.data, tmp_path / "run"), tmp_path / "run")
    trainer.fit()
    config, _ = open_checkpoint(tmp_path / "run" / "checkpoint")
    assert config.text == TextEncoding(encoder=str(t5_folder), template="An image:\n{caption}\n")


def test_folders_that_hold_no_text_encoder(t5_folder: Path, tmp_path: Path) -> None:
    gpt = tmp_path / "gpt"
    transformers.GPT2Model(transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=9)).save_pretrained(gpt)
    bare = write_t5(tmp_path / "bare")
    (bare / "spiece.model").unlink()
    for call, expected in (
        (lambda: encoder_folder(str(tmp_path / "absent")), "absent: holds no config.json"),
        (
            lambda: encoder_folder("package:no_such_package/model"),
            "the Python package no_such_package is not installed",
        ),
        (lambda: encoder_folder("package:PIL/fonts"), "package:PIL/fonts: holds no config.json"),
        (lambda: load_encoder(gpt, 8), "gpt: cannot be read as a text encoder"),
        (lambda: load_tokenizer(bare), "bare: holds no tokenizer; expected one of .*spiece.model"),
        (lambda: load_encoder(encoder_folder(MINILM), 513), "takes up to 512 tokens, but 513 are asked for"),
    ):
        with pytest.raises(StarflowError, match=expected) as caught:
            call()
        assert "\n" not in str(caught.value)
