"""The text encoder in a bundle: features as PyTorch makes them, weights by reference, and what is said about a wrong one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from safetensors import safe_open
from tokenizers import Tokenizer

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.backends.onnxruntime.networks import OnnxRuntimeNetworks
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.networks.caption_encoder import CaptionEncoder
from starflow.runtime.plain.errors import DataError, ExportError, StarflowError, UsageError
from starflow.training.config import TextEncoding
from starflow.training.text.text_encoder import encoder_folder
from tests.models import features_config, velocity_config, write_checkpoint, write_velocity
from tests.text_encoders import CAPTIONS, MINILM, published_features, write_bert, write_t5


def export(tmp_path: Path, encoder: str, width: int = 32, **options: Any) -> Bundle:
    """A bundle of a random flow on 8 tokens of `encoder`."""
    write_checkpoint(tmp_path / "checkpoint", features_config(tokens=8, width=width))
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(text_encoder=encoder, **options))
    return Bundle.open(tmp_path / "bundle")


def features(bundle: Bundle, captions: list[str]) -> Any:
    assert bundle.manifest.text
    return CaptionEncoder(bundle, OnnxRuntimeNetworks(bundle, threads=1), bundle.manifest.text).encode(captions)


def assert_published(bundle: Bundle, folder: Path, tolerance: float = 1e-5) -> None:
    """Token ids and features of a bundle of 8 tokens are those of the published code; padded rows are zero."""
    text = bundle.manifest.text
    assert text is not None
    texts = [text.template.replace("{caption}", caption) for caption in CAPTIONS]
    ids, expected = published_features(texts, folder, 8)
    tokenizer = Tokenizer.from_file(str(bundle.root / text.tokenizer.path))
    assert [tokenizer.encode(caption).ids for caption in texts] == ids.tolist()
    found = features(bundle, CAPTIONS)
    np.testing.assert_allclose(found, expected, atol=tolerance)
    padding = tokenizer.padding
    assert padding is not None
    padded = ids == padding["pad_id"]
    assert padded.any()
    assert not found[padded].any()
    assert found[~padded].any(axis=1).all()


def test_t5(captioned_bundle: Path, t5_folder: Path) -> None:
    assert_published(Bundle.open(captioned_bundle), t5_folder)


def test_bert(tmp_path: Path) -> None:
    bert = write_bert(tmp_path / "bert")
    assert_published(export(tmp_path, str(bert), 16), bert)


@pytest.mark.slow
def test_minilm(tmp_path: Path) -> None:
    assert_published(export(tmp_path, MINILM, 384), encoder_folder(MINILM))


@pytest.mark.parametrize(("dtype", "stored"), [(torch.float16, "F16"), (torch.bfloat16, "BF16")])
def test_activations_that_outgrow_float16(dtype: torch.dtype, stored: str, tmp_path: Path) -> None:
    loud = write_t5(tmp_path / "t5", loudness=1e5, dtype=dtype)
    model = transformers.T5EncoderModel.from_pretrained(loud).float()
    ids = torch.tensor([[3, 4, 5]])
    with torch.inference_mode():
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
        assert max(float(layer.abs().max()) for layer in hidden[:-1]) > 65504
        half = model.half()(input_ids=ids).last_hidden_state.float()
        # transformers keeps half-precision activations in range by cutting them, which costs the features
        assert not torch.allclose(half, hidden[-1], atol=0.1)

    bundle = export(tmp_path, str(loud))
    assert_published(bundle, loud, tolerance=2e-5)
    with safe_open(bundle.root / "graphs" / "weights" / "text_encoder.safetensors", "pt") as file:
        assert file.get_slice("encoder.embed_tokens.weight").get_dtype() == stored


def test_weights_lie_in_their_file_once(captioned_bundle: Path, t5_folder: Path) -> None:
    spec = Bundle.open(captioned_bundle).manifest.text
    assert spec is not None
    with safe_open(t5_folder / "model.safetensors", "np") as given:
        originals = {name: given.get_tensor(name) for name in given.keys()}  # noqa: SIM118
    originals["encoder.embed_tokens.weight"] = originals.pop("shared.weight")
    with safe_open(captioned_bundle / spec.encoder.weights.path, "np") as file:
        names = [name for name in file.keys() if not name.startswith("_padding")]  # noqa: SIM118
        for name in names:
            np.testing.assert_array_equal(file.get_tensor(name), originals[name])
    assert len(names) == len(originals)
    graph = onnx.load(captioned_bundle / spec.encoder.file.path, load_external_data=False).graph
    inside = [tensor for tensor in graph.initializer if not tensor.external_data]
    assert sum(len(tensor.raw_data) for tensor in inside) < 4096  # indices of positions, and no weights


def test_the_encoder_is_found_in_the_checkpoint(tmp_path: Path) -> None:
    text = TextEncoding(encoder="google/flan-t5-xl", template="An image:\n{caption}\n")
    write_checkpoint(tmp_path / "checkpoint", features_config(tokens=8, width=16).model_copy(update={"text": text}))
    bert = write_bert(tmp_path / "checkpoint" / "text_encoder")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.text
    assert bundle.manifest.text.template == text.template
    assert_published(bundle, bert)


def test_captions_name_the_aspect_ratio_of_their_shape(t5_folder: Path, tmp_path: Path) -> None:
    """As the published code of `mix_aspect` has it: width to height, of the ratio whose sides were rounded."""
    text = TextEncoding(encoder=str(t5_folder), template="{aspect_ratio} {caption}")
    write_checkpoint(tmp_path / "checkpoint", features_config(tokens=8, width=32).model_copy(update={"text": text}))
    shapes = {(8, 8): "1:1", (4, 6): "3:2", (16, 10): "2:3"}
    first, *others = shapes
    export_checkpoint(
        tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(batch=1, shape=first, other_shapes=tuple(others))
    )
    for shape, ratio in shapes.items():
        bundle = Bundle.open(tmp_path / "bundle").at_shape(shape)
        assert bundle.manifest.text
        assert bundle.manifest.text.template == f"{ratio} {{caption}}"
        _, exact = published_features([f"{ratio} red"], t5_folder, 8)
        np.testing.assert_allclose(features(bundle, ["red"]), exact, atol=1e-5)


def test_a_continuous_flow_has_one_too_and_half_the_bytes_will_do(tmp_path: Path) -> None:
    bert = write_bert(tmp_path / "bert")
    write_velocity(tmp_path / "checkpoint", velocity_config(num_classes=0, txt_size=8, txt_dim=16))
    options = ExportOptions(text_encoder=str(bert), text_precision="fp16")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", options)
    bundle = Bundle.open(tmp_path / "bundle")
    assert_published(bundle, bert, tolerance=1e-2)
    _, exact = published_features(CAPTIONS, bert, 8)
    assert np.abs(features(bundle, CAPTIONS) - exact).max() > 1e-5
    paths = {path.relative_to(bundle.root).as_posix() for path in bundle.root.rglob("*.*")}
    assert paths == {file.path for file in bundle.files()} | {"manifest.json", "manifest.sha256"}
    with safe_open(bundle.root / "graphs" / "weights" / "text_encoder.safetensors", "np") as file:
        types = {file.get_slice(name).get_dtype() for name in file.keys() if "_padding" not in name}  # noqa: SIM118
    assert types == {"F16", "I64"}  # positions are whole numbers


def test_wrong_encoders(captioned_checkpoint: Path, tiny_checkpoint: Path, t5_folder: Path, tmp_path: Path) -> None:
    def attempt(checkpoint: Path, encoder: str | None) -> None:
        export_checkpoint(checkpoint, tmp_path / "bundle", ExportOptions(text_encoder=encoder))

    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("config.json", "model.safetensors"):
        (moved / name).write_bytes((captioned_checkpoint / name).read_bytes())
    config = json.loads((moved / "config.json").read_text())
    config["text"]["encoder"] = "google/flan-t5-xl"
    (moved / "config.json").write_text(json.dumps(config))
    cases: list[tuple[type[StarflowError], Path, str | None, str]] = [
        (
            ExportError,
            captioned_checkpoint,
            MINILM,
            "its features have width 384, but the model takes width 32; .*--text-encoder",
        ),
        (DataError, captioned_checkpoint, str(tmp_path), "holds no config.json; name a Hugging Face folder"),
        (DataError, moved, None, "google/flan-t5-xl: .*or export without: --text-encoder none"),
        (UsageError, tiny_checkpoint, str(t5_folder), "this model's condition is class-token, not text features"),
    ]
    for kind, checkpoint, encoder, expected in cases:
        with pytest.raises(kind, match=expected) as caught:
            attempt(checkpoint, encoder)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "bundle").exists()
    attempt(moved, "none")
    assert Bundle.open(tmp_path / "bundle").manifest.text is None
