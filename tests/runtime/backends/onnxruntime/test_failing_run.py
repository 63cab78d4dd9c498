"""A graph that loads and then fails in a run is refused in one line."""

import hashlib
import json
import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import helper

from starflow.runtime.backends.onnxruntime.release import check_release
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


@pytest.mark.parametrize(
    ("installed", "cache", "refused"),
    [("1.24.9", "float32", "1.25"), ("1.26.1", "int8", "1.27"), ("1.26.1", "float32", None), ("2.0.0", "int8", None)],
)
def test_a_release_that_is_too_old_is_named(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, installed: str, cache: str, refused: str | None
) -> None:
    variant = Bundle.open(tiny_bundle).variant("cpu-fp32", "cpu")
    graphs = tuple(
        graph.model_copy(
            update={
                "inputs": tuple(
                    spec.model_copy(update={"dtype": cache}) if spec.role == "cache" else spec for spec in graph.inputs
                )
            }
        )
        for graph in variant.graphs
    )
    monkeypatch.setattr(onnxruntime, "__version__", installed)
    changed = variant.model_copy(update={"graphs": graphs})
    if refused is None:
        check_release(changed)
        return
    with pytest.raises(
        BackendError, match=rf"cpu-fp32 needs ONNX Runtime {refused} or newer, this is {installed}; .*pip"
    ):
        check_release(changed)
