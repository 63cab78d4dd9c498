"""One engine: cancelling it, and what its log says of it."""

import os
import signal
from pathlib import Path

import pytest

from starflow.export.tensorrt.engine_builder import build_engine
from starflow.export.tensorrt.parse import parse_graph
from starflow.export.tensorrt.profiles import token_profiles
from starflow.runtime.backends.tensorrt.flavour import load_flavour
from starflow.runtime.bundle.build_record import BuildConfig, BuildOptions

pytestmark = pytest.mark.usefixtures("rtx")


def config() -> BuildConfig:
    flavour = load_flavour("tensorrt-rtx")
    return BuildConfig(
        flavour=flavour.name,
        version=flavour.version,
        compute_capabilities=("8.9",),
        variant="portable-fp16",
        profiles=token_profiles((1, 4), 4),
        options=BuildOptions(),
    )


def test_ctrl_c_cancels_the_builder(tiny_bundle: Path, tmp_path: Path) -> None:
    """The signal comes while TensorRT works; it must end at its next step, not when it is done."""
    parsed = parse_graph(load_flavour("tensorrt-rtx"), tiny_bundle / "graphs" / "block1.portable-fp16.onnx", 1)
    reports: list[int] = []

    def report(done: int, total: int, doing: str | None = None) -> None:
        if not reports:
            os.kill(os.getpid(), signal.SIGINT)
        reports.append(done)

    with pytest.raises(KeyboardInterrupt):
        build_engine(parsed, config(), config().profiles, tmp_path / "block1.engine", report)
    assert "canceled" in parsed.log.last_error()
    assert reports[-1] < 100
    assert list(tmp_path.iterdir()) == []


def test_progress_runs_to_the_end(tiny_bundle: Path, tmp_path: Path) -> None:
    parsed = parse_graph(load_flavour("tensorrt-rtx"), tiny_bundle / "graphs" / "block0.portable-fp16.onnx", 0)
    reports: list[int] = []
    build_engine(
        parsed,
        config(),
        config().profiles,
        tmp_path / "block0.engine",
        lambda done, total, doing=None: reports.append(done),
    )
    assert reports == sorted(set(reports)) and len(reports) > 10
    assert reports[-1] > 50
    assert [path.name for path in tmp_path.iterdir()] == ["block0.engine"]
