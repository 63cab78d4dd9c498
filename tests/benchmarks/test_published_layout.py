"""The made-up published checkpoint has what a recorded one of the published code has, and is imported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import published_layout
from benchmarks.published_layout import OPTIONS, published_buffers, write_flow, write_text_encoder

from starflow.runtime.command_line import main
from starflow.training.autoregressive.config import StarflowConfig, block_configs
from starflow.training.checkpoint import open_checkpoint
from starflow.training.families import build_flow
from starflow.training.text.text_encoder import load_encoder, load_tokenizer
from tests.conformance.cases import Case


def test_buffers_are_those_of_the_published_code(repository: Path) -> None:
    case = Case(repository / "tests/data/conformance/S01_forward")
    options = {name: value for name, value in case.config["constructor"].items() if name in StarflowConfig.model_fields}
    config = StarflowConfig.model_validate(options)
    recorded = case.weights
    with torch.device("meta"):
        parameters = build_flow(config).state_dict().keys()
    expected = {name: tuple(value.shape) for name, value in recorded.items() if name not in parameters}
    found = published_buffers(config)
    assert {name: tuple(value.shape) for name, value in found.items()} == expected
    assert all(np.array_equal(found[name], recorded[name]) for name in expected)


def test_a_small_one_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"channels": 64, "blocks": 2, "layers_per_block": "1 2", "img_size": 64, "txt_size": 4}
    monkeypatch.setattr(published_layout, "OPTIONS", OPTIONS | small)
    weights, config = write_flow(tmp_path)
    stored = torch.load(weights, weights_only=True)
    assert {"var", "feat_rope.freqs_cos", "blocks.0.attn_mask"} <= stored.keys()
    assert main(["import", str(weights), "--config", str(config), "-o", str(tmp_path / "checkpoint"), "--half"]) == 0
    assert "conditioning features, noise_std 0.3" in capsys.readouterr().out


def test_larger_patches_of_the_deep_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"channels": 64, "blocks": 2, "layers_per_block": "1 2", "img_size": 64, "txt_size": 4}
    monkeypatch.setattr(published_layout, "OPTIONS", OPTIONS | small)
    weights, options = write_flow(tmp_path, deep_patch=2)
    assert main(["import", str(weights), "--config", str(options), "-o", str(tmp_path / "checkpoint"), "--half"]) == 0
    config, _ = open_checkpoint(tmp_path / "checkpoint")
    assert isinstance(config.model, StarflowConfig)
    assert [block.grid(8, 8) for block in block_configs(config.model)] == [(8, 8), (4, 4)]


def test_the_text_encoder_is_read_with_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    monkeypatch.setattr(published_layout, "T5_XL", published_layout.T5_XL | small)
    write_text_encoder(tmp_path, [f"a picture of {number} cats and a red apple" for number in range(200)])
    ids = load_tokenizer(tmp_path)("a red apple")["input_ids"]
    assert ids[-1] == 1 and len(ids) > 2
    features = load_encoder(tmp_path, 8)(input_ids=torch.tensor([ids])).last_hidden_state
    assert features.shape == (1, len(ids), 32) and features.isfinite().all()
