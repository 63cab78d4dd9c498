"""A bundle whose first flow block loads, and fails in a run: an index leads out of a tensor."""

import hashlib
import json
import shutil
from pathlib import Path

import onnx
from onnx import helper

from starflow.runtime.bundle.manifest_digest import record_digests


def make_failing(bundle: Path, root: Path) -> None:
    """Copy a bundle to `root`, and let its cpu-fp32 variant fail."""
    shutil.copytree(bundle, root)
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
