"""A small bundle whose engines take a second to build."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from starflow.export.tensorrt.build import BuildRequest, build_bundle
from starflow.export.tensorrt.target import parse_target
from starflow.runtime.bundle.bundle import Bundle, sha256
from tests.edited_manifest import edit_manifest
from tests.made_once import MadeOnce

RTX = "tensorrt-rtx:8.9,12.0"
SMALL = BuildRequest(profile_tokens=(1,))  # one profile, which TensorRT builds in less than half the time of two


@pytest.fixture(scope="session")
def rtx() -> None:
    """Skip where TensorRT RTX is not installed."""
    pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def copy(rtx: None, tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to build in, and to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


@pytest.fixture(scope="session")
def pristine(rtx: None, tiny_bundle: Path, made_once: MadeOnce) -> Path:
    """The tiny bundle with its engines; not to be changed."""

    def fill(folder: Path) -> None:
        shutil.copytree(tiny_bundle, folder / "bundle")
        build_bundle(Bundle.open(folder / "bundle"), parse_target(RTX), SMALL)

    return made_once("tiny-built", fill) / "bundle"


@pytest.fixture
def built(pristine: Path, tmp_path: Path) -> Path:
    """The tiny bundle with its engines, to change."""
    return Path(shutil.copytree(pristine, tmp_path / "built"))


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
