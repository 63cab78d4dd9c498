"""`starflow verify` on the text encoder of a bundle: the right one agrees, another one does not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from starflow.runtime.command_line import main


def verify(
    capsys: pytest.CaptureFixture[str], bundle: Path, *arguments: str
) -> tuple[int, list[dict[str, object]], dict[str, str]]:
    """Exit status, measurements of the text encoder, and what was not run by name."""
    status = main(["verify", str(bundle), "--json", *arguments])
    said = json.loads(capsys.readouterr().out)
    measured = [m for m in said["measurements"] if m["route"] == "text encoder"]
    return status, measured, {entry["route"]: entry["why"] for entry in said["not_run"]}


def test_the_encoder_the_checkpoint_names(
    captioned_bundle: Path, captioned_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, measured, not_run = verify(capsys, captioned_bundle, "--checkpoint", str(captioned_checkpoint))
    assert (status, [m["kind"] for m in measured]) == (0, ["text"])
    assert "text encoder" not in not_run


def test_without_an_encoder_to_compare_with(captioned_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, measured, not_run = verify(capsys, captioned_bundle)
    assert (status, measured) == (0, [])
    assert "--text-encoder" in not_run["text encoder"]


def test_another_encoder_does_not_agree(
    captioned_bundle: Path, t5_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in t5_folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = load_file(other / "model.safetensors")
    weights["encoder.final_layer_norm.weight"] += 1e-3 * torch.ones(32)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    status, (measured,), _ = verify(capsys, captioned_bundle, "--text-encoder", str(other))
    assert (status, measured["passed"]) == (1, False)
    assert verify(capsys, captioned_bundle, "--text-encoder", str(t5_folder))[0] == 0


def test_a_bundle_without_one(tiny_bundle: Path, t5_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tiny_bundle), "--text-encoder", str(t5_folder)]) == 2
    assert "this bundle has no text encoder" in capsys.readouterr().err
