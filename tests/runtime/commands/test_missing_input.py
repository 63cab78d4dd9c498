"""A missing file or folder is wrong use, exit status 2, in every command; it is named in one line, and nothing is written."""

from pathlib import Path

import pytest

from starflow.runtime.command_line import main

RECIPE = """
model: {family: continuous-flow, network: mlp, dimensions: 2, channels: 8, layers: 1}
data: {kind: npz, path: absent.npz}
objective: {kind: cfm}
training: {steps: 1, batch_size: 1}
"""


@pytest.mark.parametrize(
    "command",
    [
        "sample absent",
        "sample BUNDLE --condition absent.npy",
        "sample BUNDLE --null-condition absent.npy",
        "sample BUNDLE --captions-file absent.txt",
        "sample BUNDLE --plan absent.json",
        "score absent image.png",
        "score BUNDLE absent.png",
        "score BUNDLE absent.npy",
        "bench absent",
        "inspect absent",
        "verify absent",
        "verify BUNDLE --checkpoint absent",
        "build absent --target tensorrt-rtx:8.9",
        "calibrate absent --plan",
        "calibrate absent --weights int8",
        "calibrate absent --weights int8 --plain",
        "calibrate BUNDLE --weights int8 --data absent.npz",
        "export absent -o out",
        "export CHECKPOINT -o out --activations absent.npz",
        "import absent.pth --family starflow -o out",
        "import absent.safetensors --family starflow -o out",
        "import CHECKPOINT/model.safetensors --config absent.yaml -o out",
        "train absent.yaml",
        "train recipe.yaml",
    ],
)
def test_a_missing_input_is_wrong_use(
    command: str,
    tiny_bundle: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    places = {"BUNDLE": str(tiny_bundle), "CHECKPOINT": str(tiny_checkpoint)}
    for place, path in places.items():
        command = command.replace(place, path)
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "absent" in error
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"], "nothing is written"
