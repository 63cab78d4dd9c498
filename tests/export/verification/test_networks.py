"""`starflow verify` of what TensorRT makes of the networks beside the flow: in the interpreter, and as engines on a simulated device."""

import json
import shutil
from pathlib import Path

import onnx
import pytest

from starflow.runtime.bundle.bundle import Bundle, sha256
from starflow.runtime.command_line import main
from tests.edited_manifest import edit_manifest
from tests.simulated_device.fixtures import Simulate

NETWORKS = ["text encoder", "encoder", "decoder", "noisy decoder", "denoiser score-fp16", "denoiser learned-fp16"]


def verify(capsys: pytest.CaptureFixture[str], bundle: Path, *arguments: str) -> tuple[int, dict[str, dict], dict]:
    """Exit status, measurements of the networks by route, and everything that was said."""
    status = main(["verify", str(bundle), "--json", *arguments])
    said = json.loads(capsys.readouterr().out)
    kinds = ("text", "pixels", "denoise")
    return status, {m["route"]: m for m in said["measurements"] if m["kind"] in kinds}, said


def test_every_network_through_the_parsed_network(
    captioned_engines: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found, said = verify(capsys, captioned_engines.root, "--backend", "network")
    assert status == 0
    assert list(found) == [f"network {name}" for name in NETWORKS]
    assert {m["tolerance"] for m in found.values()} == {5e-3}, "all compute in float16"
    assert all(m["relative"] > 1e-5 for m in found.values()), "they do"
    assert said["guard"]["graphs"] == 2 + len(NETWORKS)


def test_every_engine_on_a_gpu(
    captioned_engines: Bundle, simulate: Simulate, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(capability="12.0")
    status, found, _ = verify(capsys, captioned_engines.root, "--backend", "tensorrt")
    assert status == 0
    assert list(found) == [f"tensorrt {name}" for name in NETWORKS]
    simulate(capability="8.6")
    status, found, said = verify(capsys, captioned_engines.root, "--backend", "onnxruntime", "tensorrt")
    assert (status, list(found)) == (0, [])
    assert {entry["route"] for entry in said["not_run"]} >= {f"tensorrt {name}" for name in NETWORKS}


def test_a_parser_that_reads_something_else_is_found(
    captioned_engines: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kernel that computes something else than ONNX Runtime stands for a layer that the parser misread."""
    from starflow.export.tensorrt.interpreter import interpreter

    monkeypatch.setitem(interpreter.KERNELS, "CONVOLUTION", lambda layer: _doubled(layer))
    status, found, _ = verify(capsys, captioned_engines.root, "--backend", "network")
    assert status == 1
    wrong = {route for route, m in found.items() if not m["passed"]}
    assert wrong == {"network encoder", "network decoder", "network noisy decoder"}


def _doubled(layer: object) -> object:
    from starflow.export.tensorrt.interpreter.images import convolution

    compute = convolution(layer)  # type: ignore[arg-type]
    return lambda *values: 2 * compute(*values)


def test_a_network_that_cannot_be_parsed_is_a_failure(
    captioned_engines: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(captioned_engines.root, root, ignore=shutil.ignore_patterns("engines"))
    path = root / "graphs" / "decoder.fp32.onnx"
    model = onnx.load(path, load_external_data=False)
    last = model.graph.node[-1].output[0]  # read by nobody, but the parser reads every node
    model.graph.node.append(onnx.helper.make_node("Det", [last], ["det"], name="decoder/Det"))
    onnx.save(model, path)

    def follow(manifest: dict) -> None:
        manifest["autoencoder"]["decoders"][0]["network"]["file"] |= {
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        }

    edit_manifest(root, follow)
    status, _, said = verify(capsys, root, "--backend", "network")
    assert status == 1
    (failure,) = said["failures"]
    assert failure["route"] == "network decoder" and "node decoder/Det (Det)" in failure["what"]
