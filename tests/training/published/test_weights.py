"""Weights files: every form that is tensors is read, and nothing else does anything."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from starflow.runtime.plain.errors import CheckpointError, UsageError
from starflow.training.published.weights import open_weights

STATE = {"blocks.0.proj_in.weight": torch.arange(6.0).view(2, 3), "blocks.0.proj_in.bias": torch.ones(2).half()}


class Bomb:
    """Unpickled by the book, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def check_state(path: Path) -> None:
    found = open_weights(path)
    assert found.keys() == STATE.keys()
    for name, value in STATE.items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict", "module"])
def test_reads_a_state_dict_wherever_it_lies(key: str | None, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE if key is None else {key: STATE, "epoch": 3, "lr": [1e-4]}, path)
    check_state(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_strips_the_prefixes_of_wrappers(prefix: str, tmp_path: Path) -> None:
    torch.save({f"{prefix}{name}": value for name, value in STATE.items()}, tmp_path / "weights.pth")
    check_state(tmp_path / "weights.pth")


def test_reads_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.safetensors")
    check_state(tmp_path / "weights.safetensors")


def test_reads_files_from_before_the_zip_format(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    check_state(tmp_path / "weights.pth")


def test_parameters_and_ordered_dictionaries(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    torch.save({"state_dict": dict(module.named_parameters())}, tmp_path / "weights.pth")
    assert torch.equal(open_weights(tmp_path / "weights.pth")["weight"], module.weight)
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    assert torch.equal(open_weights(tmp_path / "weights.pth")["weight"], module.weight)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the process's mappings are only visible on Linux")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_data_is_mapped_not_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {"x": torch.zeros(1000)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    opened = open_weights(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    assert torch.equal(opened["x"], state["x"])


@pytest.mark.parametrize("way", ["zip", "legacy", "bare", "nested"])
def test_code_in_a_file_is_refused_and_not_run(way: str, tmp_path: Path) -> None:
    path, evidence = tmp_path / "weights.pth", tmp_path / "boom"
    bomb = Bomb(evidence)
    if way == "bare":
        path.write_bytes(pickle.dumps(STATE | {"bomb": bomb}, protocol=2))
    elif way == "nested":
        torch.save({"model": STATE, "extra": [{"deep": bomb}]}, path)
    else:
        torch.save(STATE | {"bomb": bomb}, path, _use_new_zipfile_serialization=way == "zip")
    with pytest.raises(CheckpointError, match=r"it was refused and nothing in it was run") as caught:
        open_weights(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert not evidence.exists()
    if way != "bare":  # the bomb is real: whoever unpickles it blindly sets it off
        assert "posix.mkdir" in str(caught.value)
        torch.load(path, weights_only=False)
        assert evidence.exists()


def test_objects_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace(lr=1)}, tmp_path / "weights.pth")
    with pytest.raises(
        CheckpointError, match=r"holds more than tensors \(argparse.Namespace\).*save the state dict alone"
    ):
        open_weights(tmp_path / "weights.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"holds more than tensors \(torch.nn.modules.linear.Linear\)"):
        open_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("weights.pth", b"", "not a PyTorch file, or damaged"),
        ("weights.pth", b"hello world\n", "not a PyTorch file, or damaged"),
        ("weights.pth", b"<html>404</html>", "not a file of tensors, or damaged"),
        ("weights.pth", b"PK\x03\x04" + bytes(100), "not a PyTorch file, or damaged"),
        ("weights.safetensors", b"", "not a safetensors file, or damaged"),
        ("weights.safetensors", b"hello world\n", "not a safetensors file, or damaged"),
        ("weights.safetensors", b"\xff" * 64, "not a safetensors file, or damaged"),
    ],
)
def test_other_files(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=expected) as caught:
        open_weights(tmp_path / name)
    assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_files(kind: str, kept: float, tmp_path: Path) -> None:
    state = {"x": torch.randn(500), "y": torch.randn(500)}
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="damaged") as caught:
        open_weights(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "holds a dictionary of nothing; expected a state dict"),
        ({"optimizer": {"lr": 1}, "epoch": 3}, "holds a dictionary of optimizer, epoch; expected a state dict"),
        ({"x": torch.ones(1), "epoch": 3}, "holds a dictionary of x, epoch; expected"),
        ([torch.ones(1)], "holds list; expected a state dict"),
        (torch.ones(1), "holds Tensor; expected a state dict"),
        ({"module.x": torch.ones(1), "x": torch.ones(1)}, "two tensors are x without the prefixes"),
    ],
)
def test_tensors_that_are_no_state_dict(content: Any, expected: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=expected):
        open_weights(tmp_path / "weights.pth")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not exist; name a .pth or .safetensors file"):
        open_weights(tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=r"is a folder; name a .pth or .safetensors file"):
        open_weights(tmp_path)
