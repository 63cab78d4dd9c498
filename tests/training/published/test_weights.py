"""Weights files: every form that is tensors is read, and nothing else does anything."""

import argparse
import os
import pickle
import random
import re
import resource
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from starflow.runtime.plain.errors import CheckpointError, UsageError
from starflow.training.published.weights import open_weights
from starflow.training.tensor_file import write_tensors

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


@pytest.mark.parametrize("zipped", [True, False])
def test_every_kind_of_tensor_is_read_as_pytorch_reads_it(zipped: bool, tmp_path: Path) -> None:
    whole = torch.randn(4, 6)
    state = {
        "transposed": whole.T,
        "slice": whole[1:3, ::2],  # shares its numbers with the one before
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "brain": torch.randn(5).bfloat16(),
        "counter": torch.tensor([3]),
        "mask": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "repeated": torch.tensor([7.0]).expand(3),
        "parameter": nn.Parameter(torch.randn(7)),
    }
    path = tmp_path / "weights.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    expected, found = torch.load(path, weights_only=True), open_weights(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_what_training_scripts_save_beside_the_tensors_is_left_alone(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    extra = {"device": torch.device("cpu"), "dtype": torch.float16, "size": torch.Size([2, 3]), "lr": 1e-3}
    saved = {"optimizer": optimizer.state_dict(), "args": extra, "model": model.state_dict()}
    torch.save(saved, tmp_path / "weights.pth")
    assert torch.equal(open_weights(tmp_path / "weights.pth")["weight"], model.weight)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (torch.eye(3).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (torch.empty(10**6, 10**6, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
        (torch.ones(2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
        (bytearray(4), "__builtin__.bytearray"),
    ],
)
def test_tensors_without_plain_numbers_are_refused(value: Any, name: str, tmp_path: Path) -> None:
    torch.save(STATE | {"other": value}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=rf"holds more than tensors \({re.escape(name)}\)"):
        open_weights(tmp_path / "weights.pth")


def save_pickle(path: Path, content: bytes) -> Path:
    """A file of torch.save whose pickle is replaced."""
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, part in parts.items():
            new.writestr(name, content if name.endswith("data.pkl") else part)
    return path


START, OF_4_BYTES = b"\x80\x02", b"X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
REBUILD = b"}X\x01\0\0\0xctorch._utils\n_rebuild_tensor_v2\n((" + OF_4_BYTES + b"K\x01tQ"
BOMBS = {
    "more than 2,000,000 operations": START + b"N" * 3_000_000 + b".",
    "its pickle has more than": START + b"N." + bytes(17 << 20),
    "builtins.bytearray": START + b"cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R.",
    "_codecs.encode": START + b"c_codecs\nencode\nX\x01\0\0\0aX\x04\0\0\0zlib\x86R.",
    "holds NoneType": START + b"Nr\xff\xff\xff\x7f.",  # pickle's C code makes room for all values before this one
    "a text of 4,294,967,295 bytes": START + b"X\xff\xff\xff\xff.",
    "a key that is tuple": START + b"}" + b")" + b"\x85" * 200_000 + b"Ns.",  # to hash it overflows the stack
    "holds tuple": START + b")" + b"\x85" * 200_000 + b".",
    # One number, repeated 4e18 times.
    "shape .2147483647, 2147483647. reaches beyond": START
    + REBUILD
    + b"K\0"
    + 2 * b"J\xff\xff\xff\x7f"
    + b"\x86K\0K\0\x86\x89}tRs.",
    "found -1, expected a size": START + REBUILD + b"J\xff\xff\xff\xffK\x01\x85K\x01\x85\x89}tRs.",
    "shape .1000. reaches beyond": START + REBUILD + b"K\0M\xe8\x03\x85K\x01\x85\x89}tRs.",
}


@pytest.mark.parametrize("found", BOMBS)
def test_bombs_cost_nothing(found: str, tmp_path: Path) -> None:
    path = save_pickle(tmp_path / "weights.pth", BOMBS[found])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CheckpointError, match=found) as caught:
        open_weights(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


def test_compressed_parts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, part in parts.items():
            new.writestr(name, part)
    with pytest.raises(CheckpointError, match="compressed"):
        open_weights(path)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_no_flipped_bit_changes_a_weight(kind: str, tmp_path: Path) -> None:
    """Where nothing is refused, the bit is one that no reader reads, such as a zip entry's date."""
    state = {name: torch.randn(40, 10) for name in ("a", "b", "c")}
    path = tmp_path / f"weights.{kind}"
    torch.save(state, path) if kind == "pth" else write_tensors(path, state, half=False)
    content, draw, refused = path.read_bytes(), random.Random(0), 0
    for place in draw.sample(range(8 * len(content)), 200):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = open_weights(path)
        except CheckpointError:
            refused += 1
            continue
        assert kind == "pth" and found.keys() == state.keys()
        assert all(torch.equal(found[name], value) for name, value in state.items())
    assert refused == 200 if kind == "safetensors" else refused > 150


def test_no_flipped_bit_hides_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_tensors(path, STATE, half=False)
    content = path.read_bytes()
    start = content.index(b"__metadata__")
    for place in range(8 * start, 8 * (content.index(b"sha256:") + 71)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged"):
            open_weights(path)


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
        ("weights.pth", b"<html>404</html>", "not a PyTorch file, or damaged"),
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
    with pytest.raises(UsageError, match=r"is a folder, expected a file; name a .pth or .safetensors file"):
        open_weights(tmp_path)
