"""A safetensors file is as large as its header says, or nobody maps it or reads on."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from starflow.runtime.plain.errors import CheckpointError
from starflow.runtime.plain.tensor_header import read_tensor_header
from starflow.training.published.weights import open_weights
from starflow.training.tensor_file import DIGEST, DIGEST_START, CheckpointTensors, check_digest

ENTRY = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def header(content: object) -> bytes:
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text


def test_the_header_is_the_one_that_was_written(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors", {"format": "pt"})
    start, found = read_tensor_header(tmp_path / "a.safetensors")
    assert found == ENTRY | {"__metadata__": {"format": "pt"}}
    assert len(start) + 8 == (tmp_path / "a.safetensors").stat().st_size


SIGNED = {"__metadata__": {DIGEST: f"{DIGEST_START}{'1' * 64}"}} | ENTRY  # it would be read to its end
BAD: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 0, "does not begin with a header"),
    "terabytes of nothing": (b"", 2**43, "does not begin with a header"),
    "terabytes": (header(ENTRY), 2**43, r"says \d+ bytes, but it has 8,796,093,022,208"),
    "terabytes with a digest": (header(SIGNED), 2**43, r"says \d+ bytes, but it has 8,796,093,022,208"),
    "cut": (header(ENTRY), len(header(ENTRY)) + 7, r"says \d+ bytes, but it has"),
    "a header beyond the end": ((1 << 40).to_bytes(8, "little"), 100, "does not begin with a header"),
    "a list": (header([]), len(header([])), "header is damaged"),
    "no offsets": (header({"x": {}}), 100, "header is damaged"),
    "a text as offsets": (header({"x": {"data_offsets": "ab"}}), 100, "header is damaged"),
    "no JSON": (b"\x08" + bytes(7) + b"x" * 8, 16, "header is damaged"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("read", [open_weights, CheckpointTensors, check_digest])
def test_what_is_no_such_file_is_refused_at_once(kind: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    start, size, found = BAD[kind]
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    before = time.process_time()
    with pytest.raises(CheckpointError, match=found) as caught:
        read(path)
    assert "\n" not in str(caught.value) and time.process_time() - before < 5
