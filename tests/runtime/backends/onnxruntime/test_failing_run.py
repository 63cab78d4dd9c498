"""A graph that loads and then fails in a run is refused in one line."""

from pathlib import Path

import pytest

from starflow.runtime.backends.onnxruntime.session import runs
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BackendError
from starflow.runtime.sampler import Sampler
from tests.failing_bundle import make_failing


def test_an_index_out_of_bounds_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    make_failing(tiny_bundle, tmp_path / "bundle")
    with (
        pytest.raises(BackendError, match=r"^block0.cpu-fp32.onnx: ONNX Runtime cannot run it \(.+\)$"),
        Sampler.open(tmp_path / "bundle") as sampler,
    ):
        sampler.generate(sampler.noise(1), [1])


def test_what_fails_in_a_run_keeps_its_reason(tiny_bundle: Path) -> None:
    graph = Bundle.open(tiny_bundle).manifest.variants[0].graphs[0]
    with pytest.raises(BackendError, match=r"cannot run it \(AssertionError\)$") as caught, runs(graph):
        raise AssertionError
    assert isinstance(caught.value.__cause__, AssertionError)
    with pytest.raises(MemoryError), runs(graph):
        bytearray(1 << 62)
