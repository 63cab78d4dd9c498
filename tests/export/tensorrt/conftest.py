"""A small bundle whose engines take a second to build."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from starflow.runtime.bundle.bundle import sha256
from tests.edited_manifest import edit_manifest

RTX = "tensorrt-rtx:8.9,12.0"


@pytest.fixture(scope="session")
def rtx() -> None:
    """Skip where TensorRT RTX is not installed."""
    pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def copy(rtx: None, tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to build in, and to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


EditGraph = Callable[[int, Callable[[onnx.ModelProto], None]], None]


@pytest.fixture
def edit_graph(copy: Path) -> EditGraph:
    """Change the fp16 graph of a flow block, as another exporter might have written it: the manifest agrees with it."""

    def edit(block: int, change: Callable[[onnx.ModelProto], None]) -> None:
        path = copy / "graphs" / f"block{block}.portable-fp16.onnx"
        model = onnx.load(path, load_external_data=False)
        change(model)
        onnx.save(model, path)

        def follow(manifest: dict[str, Any]) -> None:
            variant = next(each for each in manifest["variants"] if each["name"] == "portable-fp16")
            graph = next(each for each in variant["graphs"] if each["block"] == block)
            graph["file"] |= {"bytes": path.stat().st_size, "sha256": sha256(path)}

        edit_manifest(copy, follow)

    return edit
