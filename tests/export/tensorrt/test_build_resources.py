"""Room for a build: the estimate, and what is said where it does not fit."""

import re
from pathlib import Path

import pytest

from starflow.export.tensorrt.build_resources import NETWORK, check_room, needed_memory
from starflow.runtime.plain.errors import ExportError
from starflow.runtime.plain.memory import available_memory


def test_memory_that_no_machine_has(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"flow block 5: the build needs about 300000\.50 GiB .*3 x 100000\.00 GiB"
    ) as caught:
        check_room("flow block 5", 100_000 << 30, tmp_path)
    available = available_memory()
    assert available is not None
    said = re.search(r"([0-9.]+) GiB are available", str(caught.value))
    assert said and float(said[1]) == pytest.approx(available / 2**30, rel=0.5)


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starflow.export.tensorrt.build_resources.available_memory", lambda: None)
    with pytest.raises(ExportError, match=r"engine of flow block 5 needs more than 100000\.00 GiB, .* GiB are free"):
        check_room("flow block 5", 100_000 << 30, tmp_path)


def test_a_network_beside_the_flow_needs_more_memory_and_less_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExportError, match=r"the decoder: the build needs about 300001\.50 GiB .*3 x 100000\.00 GiB"):
        check_room("the decoder", 100_000 << 30, tmp_path, NETWORK)
    monkeypatch.setattr("starflow.export.tensorrt.build_resources.available_memory", lambda: None)
    with pytest.raises(ExportError, match=r"engine of the decoder needs more than 50000\.00 GiB"):
        check_room("the decoder", 100_000 << 30, tmp_path, NETWORK)


def test_a_small_block_has_room(tmp_path: Path) -> None:
    assert needed_memory(0) < 1 << 30
    check_room("flow block 0", 1 << 20, tmp_path)
