"""`starflow push`: what arrives on the Hub, and what its card says."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from starflow.runtime import Sampler
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.command_line import main
from starflow.runtime.plain.images import grid
from tests.runtime.hub.loopback_hub import Files, LoopbackHub
from tests.runtime.hub.test_from_hub import files_of

NAME = "org/pushed"


def on_main(hub: LoopbackHub) -> Files:
    repository = hub.repositories[NAME]
    return repository.commits[repository.branches["main"]]


def test_what_was_pushed_opens_by_its_name(
    hub: LoopbackHub, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["push", str(tiny_bundle), NAME, "--labels", "1,2", "--guidance", "1.5", "--seed", "3", "--private"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{hub.address}/{NAME}/commit/") and "cpu-fp32" in lines[0]
    assert lines[1] == "the card names no licence; push again with --license"
    pushed = on_main(hub)
    extra = {".gitattributes", "README.md", "samples.png"}
    assert {name: content for name, content in pushed.items() if name not in extra} == files_of(tiny_bundle)
    assert hub.repositories[NAME].private
    with Sampler.open(NAME) as there:
        images = there.sample([1, 2], guidance=1.5, seed=3)
    shown = np.asarray(Image.open(io.BytesIO(pushed["samples.png"])))
    np.testing.assert_array_equal(shown, grid(images)[:, :, 0] if images.shape[3] == 1 else grid(images))


def test_the_card_says_what_the_hub_sorts_by_and_the_figures(hub: LoopbackHub, captioned_bundle: Path) -> None:
    assert main(["push", str(captioned_bundle), NAME, "--captions", "a | b", "--license", "mit"]) == 0
    _, metadata, text = on_main(hub)["README.md"].decode().split("---\n", 2)
    found = yaml.safe_load(metadata)
    assert (
        found["library_name"] == "starflow" and found["pipeline_tag"] == "text-to-image" and found["license"] == "mit"
    )
    assert "![Samples](samples.png)" in text and "*a | b: guidance 0, seed 0," in text
    assert f'Sampler.open("{NAME}")' in text and "--captions" in text
    manifest = Bundle.open(captioned_bundle).manifest
    assert f"{manifest.model.parameters:,} parameters" in text
    assert all(f"| `{variant.name}` |" in text for variant in manifest.variants)


def test_only_the_chosen_variants_are_pushed_and_old_parts_go(
    hub: LoopbackHub, tiny_bundle: Path, tmp_path: Path
) -> None:
    hub.add(NAME, {"graphs/old.onnx": b"old", "engines/old/build.json": b"{}", "notes.md": b"kept"})
    assert main(["push", str(tiny_bundle), NAME, "--variant", "cpu-fp16"]) == 0
    pushed = on_main(hub)
    assert "notes.md" in pushed and "graphs/old.onnx" not in pushed and "engines/old/build.json" not in pushed
    assert [variant["name"] for variant in json.loads(pushed["manifest.json"])["variants"]] == ["cpu-fp16"]
    assert not any("portable" in name for name in pushed)
    with Sampler.open(NAME) as there, Sampler.open(tiny_bundle, variant="cpu-fp16") as here:
        np.testing.assert_array_equal(there.sample([1], seed=4), here.sample([1], seed=4))
    assert main(["copy", str(tiny_bundle), "-o", str(tmp_path / "copy"), "--variant", "cpu-fp16"]) == 0
    assert files_of(tmp_path / "copy").items() <= pushed.items()
    assert main(["inspect", str(tmp_path / "copy"), "--hashes"]) == 0


def test_a_branch_is_made(hub: LoopbackHub, continuous_bundle: Path) -> None:
    assert main(["push", str(continuous_bundle), NAME, "--branch", "next", "--json"]) == 0
    assert "manifest.json" not in on_main(hub)
    assert Bundle.open(f"{NAME}@next").manifest.family_name == "continuous"


def test_a_dry_run_pushes_nothing(hub: LoopbackHub, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(tiny_bundle), NAME, "--dry-run"]) == 0
    assert not hub.repositories
    assert "nothing was pushed:\n  README.md\n  samples.png\n  manifest.json\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["no name"], "no name: is no name on the Hugging Face Hub; give org/name"),
        (["org/a@main"], "org/a@main: is no name on the Hugging Face Hub; give org/name"),
        ([NAME, "--variant", "cpu"], "has no variant 'cpu'"),
        ([NAME, "--labels", "0,,x"], "label 'x'"),
        ([NAME, "--labels", "0-99"], "100 samples for a card: give conditions for at most 64"),
    ],
)
def test_wrong_use_is_one_line(
    hub: LoopbackHub, tiny_bundle: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(tiny_bundle), *words]) in (1, 2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and line in said[0]
    assert not hub.repositories


def test_who_may_not_write_is_told_how_to_log_in(
    hub: LoopbackHub, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert main(["push", str(tiny_bundle), NAME]) == 2
    assert capsys.readouterr().err == (
        f"starflow push: error: {NAME}: the Hugging Face Hub does not let you write there; log in with `hf auth login`, or "
        "set HF_TOKEN\n"
    )
