"""The overflow check before a float16 export."""

from pathlib import Path

import numpy as np
import pytest
import torch

from starflow.export.activations import ActivationData
from starflow.export.autoregressive.activation_check import activation_peaks
from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import ExportError
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.checkpoint import load_autoregressive, open_checkpoint, save_checkpoint
from starflow.training.config import CheckpointConfig
from starflow.training.families import build_flow
from tests.models import class_config, features_config, randomise, tarflow_config, unconditional_config

LOUD = "blocks.1.attn_blocks.0.mlp.main.0.weight"


def peaks_of(folder: Path, data: ActivationData | None = None) -> dict[str, float]:
    config, tensors = open_checkpoint(folder)
    with torch.device("meta"):
        model = build_flow(config.model)
        assert isinstance(model, AutoregressiveFlow)
    return activation_peaks(config, model, tensors, data)


def write(folder: Path, config: CheckpointConfig, factor: float = 1.0) -> Path:
    """A random model, one layer of which is `factor` times louder."""
    model = randomise(build_flow(config.model))
    state = model.state_dict()
    state[LOUD] = state[LOUD] * factor
    save_checkpoint(folder, config, state)
    return folder


@pytest.mark.parametrize("config", [class_config(), features_config(), unconditional_config(), tarflow_config()])
def test_every_kind_of_model_can_draw_its_own_samples(tmp_path: Path, config: CheckpointConfig) -> None:
    peaks = peaks_of(write(tmp_path / "c", config))
    layers = {f"blocks.{b}.attn_blocks.{i}" for b, n in enumerate((1, 2)) for i in range(n)}
    assert peaks.keys() >= (layers if config.model.family == "starflow" else {"blocks.0.attn_blocks.0"})
    assert all(0 < peak < 1e4 for peak in peaks.values())


def test_peaks_are_those_of_the_whole_model(tmp_path: Path) -> None:
    """On given data, streaming the layers changes nothing: compare with hooks on the ordinary model."""
    folder = write(tmp_path / "c", class_config())
    _, model = load_autoregressive(folder)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([1, 4, 10])
    seen: dict[str, float] = {}

    def watch(name: str):
        def hook(module, arguments, output):
            seen[name] = max(seen.get(name, 0), float(arguments[0].abs().max()), float(output.abs().max()))

        return hook

    layer = model.get_submodule("blocks.1.attn_blocks.1")
    for name, module in layer.named_modules():
        module.register_forward_hook(watch(name))
    with torch.no_grad():
        model(x, model.encode_labels(labels))
    peaks = peaks_of(folder, ActivationData(x, labels))
    assert peaks["blocks.1.attn_blocks.1"] == pytest.approx(max(seen.values()), rel=1e-6)


def test_a_layer_that_overflows_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    loud = write(tmp_path / "c", class_config(), factor=3e4)
    with pytest.raises(ExportError, match=r"activations of blocks\.1\.attn_blocks\.0 reach .*--precision bf16 or fp32"):
        export_checkpoint(loud, tmp_path / "b", ExportOptions(precisions=("fp32", "fp16")))
    assert not (tmp_path / "b").exists()
    export_checkpoint(loud, tmp_path / "b", ExportOptions(precisions=("fp32", "bf16")))
    names = [variant.name for variant in Bundle.open(tmp_path / "b").manifest.variants]
    assert names == ["portable-fp32", "cpu-fp32", "portable-bf16"]


def test_given_data_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing the model draws overflows; data far from what it was trained on does."""
    folder = write(tmp_path / "c", unconditional_config())
    data = tmp_path / "x.npz"
    np.savez(data, x=np.full((1, 1, 8, 8), 1e7, np.float32))
    command = ["export", str(folder), "-o", str(tmp_path / "b"), "--precision", "fp16"]
    assert main([*command, "--activations", str(data)]) == 1
    assert "activations of blocks.0.proj_in reach" in capsys.readouterr().err
    assert main(command) == 0
    assert "largest activation" in capsys.readouterr().out
    peaks = Bundle.open(tmp_path / "b").manifest.variants[0].activation_peaks
    assert peaks and max(peaks.values()) < 1000


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros(3)}, "give x"),
        ({"x": np.full((1, 1, 8, 8), np.nan)}, "finite"),
        ({"x": np.zeros((1, 3, 8, 8))}, "does not fit"),
        ({"x": np.zeros((1, 1, 8, 8)), "condition": np.array([11])}, "0 to 10"),
    ],
)
def test_bad_activation_data(
    tiny_checkpoint: Path, tmp_path: Path, arrays: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    status = main(["export", str(tiny_checkpoint), "-o", str(tmp_path / "b"), "--precision", "fp16",
                   "--activations", str(tmp_path / "x.npz")])  # fmt: skip
    assert status == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "b").exists()
