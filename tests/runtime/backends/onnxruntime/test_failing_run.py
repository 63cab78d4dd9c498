"""A graph that loads and then fails in a run is refused in one line."""

import hashlib
import json
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import helper

from starflow.runtime.backends.onnxruntime.session import runs
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest_digest import record_digests
from starflow.runtime.plain.errors import BackendError
from starflow.runtime.sampler import Sampler


def test_an_index_out_of_bounds_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    path = root / "graphs" / "block0.cpu-fp32.onnx"
    model = onnx.load(path, load_external_data=False)
    gather = next(node for node in model.graph.node if node.name == "output/Gather")
    model.graph.initializer.append(helper.make_tensor("far", onnx.TensorProto.INT64, [1], [1000]))
    index = list(model.graph.node).index(gather)
    model.graph.node.insert(index, helper.make_node("Add", [gather.input[1], "far"], ["farther"]))
    gather.input[1] = "farther"
    path.write_bytes(model.SerializeToString())
    manifest = json.loads((root / "manifest.json").read_bytes())
    for variant in manifest["variants"]:
        for graph in variant["graphs"]:
            if graph["file"]["path"] == "graphs/block0.cpu-fp32.onnx":
                graph["file"] |= {
                    "bytes": path.stat().st_size,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                }
    (root / "manifest.json").write_text(json.dumps(manifest))
    record_digests(root, (root / "manifest.json").read_bytes())
    with (
        pytest.raises(BackendError, match=r"^block0.cpu-fp32.onnx: ONNX Runtime cannot run it \(.+\)$"),
        Sampler.open(root) as sampler,
    ):
        sampler.generate(sampler.noise(1), [1])


def test_what_fails_in_a_run_keeps_its_reason(tiny_bundle: Path) -> None:
    graph = Bundle.open(tiny_bundle).manifest.variants[0].graphs[0]
    with pytest.raises(BackendError, match=r"cannot run it \(AssertionError\)$") as caught, runs(graph):
        raise AssertionError
    assert isinstance(caught.value.__cause__, AssertionError)
    with pytest.raises(MemoryError), runs(graph):
        bytearray(1 << 62)
