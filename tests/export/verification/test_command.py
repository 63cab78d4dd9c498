"""`starflow verify` through the real command line: what it prints, and its exit status."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from starflow.runtime.bundle.bundle import Bundle, sha256
from starflow.runtime.command_line import main
from tests.edited_manifest import edit_manifest


def test_it_agrees_with_the_checkpoint(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    report = tmp_path / "report.html"
    arguments = ["--checkpoint", str(tiny_checkpoint), "--hashes", "--seed", "3", "--report", str(report), "--json"]
    assert main(["verify", str(tiny_bundle), *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] and told["compared"] and told["reference"] == "torch"
    assert (told["images"], told["seed"], told["guidance"]) == (2, 3, 1.0)
    routes = {measurement["route"] for measurement in told["measurements"]}
    assert routes == {f"onnxruntime {lowering}-{p}" for lowering in ("cpu", "portable") for p in ("fp32", "fp16")}
    (skipped,) = told["not_run"]
    assert skipped["route"] == "tensorrt" and "starflow build" in skipped["why"]
    assert "PASSED" in report.read_text()


def test_its_table_names_the_worst_block_and_the_tolerance(tiny_bundle: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["verify", str(tiny_bundle), "--backend", "onnxruntime", "--variants", "portable-fp16"]) == 0
    out = capsys.readouterr().out
    assert "reference onnxruntime cpu-fp32" in out
    assert (
        "relative ≤ 0.05" in out
        and max(map(len, out.splitlines()[:6])) <= 80
        and "1 route agrees with onnxruntime cpu-fp32" in out
    )


def test_a_tolerance_that_does_not_hold_fails(tiny_bundle: Path, capsys) -> None:
    arguments = ["--backend", "onnxruntime", "--variants", "portable-fp16", "--tolerance", "fp16.given=1e-9"]
    assert main(["verify", str(tiny_bundle), *arguments]) == 1
    out = capsys.readouterr().out
    assert re.search(r"FAILED onnxruntime portable-fp16: error \S+e-\d exceeds 1e-9 \(block [01], token \d+\)\n", out)
    assert "FAILED 1 of 1 route does not agree with onnxruntime cpu-fp32" in out


def test_providers_and_variants_are_named_as_by_other_commands(tiny_bundle: Path, capsys) -> None:
    """The names they had before still work."""
    told = []
    for arguments in (
        ["--backend", "onnxruntime", "--provider", "cpu", "cuda", "--variant", "portable-fp32"],
        ["--backend", "onnxruntime", "onnxruntime-cuda", "--variants", "portable-fp32"],
    ):
        main(["verify", str(tiny_bundle), *arguments, "--json"])
        told.append(json.loads(capsys.readouterr().out))
    new, old = told
    assert new == old
    asked = {m["route"] for m in new["measurements"]} | {each["route"] for each in new["not_run"]}
    assert asked == {"onnxruntime portable-fp32", "onnxruntime-cuda portable-fp32"}


def test_comparing_nothing_fails(tiny_bundle: Path, capsys) -> None:
    """Engines were asked for and there are none: that must never look like success."""
    assert main(["verify", str(tiny_bundle), "--backend", "tensorrt"]) == 1
    out = capsys.readouterr().out
    assert "not run" in out and "nothing was compared" in out


def test_a_changed_weight_file_is_found_by_its_digest(tiny_bundle: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    weights = copy / Bundle.open(copy).manifest.variants[0].weights.path
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(content)
    assert main(["verify", str(copy), "--hashes"]) == 1
    assert weights.name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "0"], "--images 0"),
        (["--tolerance", "fp16=1"], "--tolerance fp16=1"),
        (["--backend", "cuda"], "--backend: found 'cuda', expected one of 'onnxruntime'"),
        (["--backend", "tensorrt", "--provider", "cuda"], "--provider cuda: only --backend onnxruntime has providers"),
        (["--guidance", "-1"], "guidance -1.0"),
        (["--seed", "-1"], "seed -1"),
        (["--report", "."], "is a folder"),
    ],
)
def test_wrong_use_exits_2(tiny_bundle: Path, capsys, arguments: list[str], message: str) -> None:
    assert main(["verify", str(tiny_bundle), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_bundle_and_what_is_no_variant(tiny_bundle: Path, tmp_path: Path, capsys) -> None:
    assert main(["verify", str(tmp_path)]) == 1
    assert "manifest.json" in capsys.readouterr().err
    assert main(["verify", str(tiny_bundle), "--variants", "portable-int8"]) == 1
    assert "portable-int8" in capsys.readouterr().err


def test_a_graph_tensorrt_would_misread_fails(tiny_bundle: Path, tmp_path: Path, capsys) -> None:
    """ONNX Runtime computes it rightly, so only the parser guard can object: a cache is read beside its update."""
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    path = copy / "graphs" / "block0.portable-fp32.onnx"
    model = onnx.load(path, load_external_data=False)
    scatter = next(node for node in model.graph.node if node.op_type == "TensorScatter")
    model.graph.node.append(onnx.helper.make_node("Identity", [scatter.input[0]], ["read_beside"], name="beside"))
    onnx.save(model, path)

    def follow(manifest: dict[str, Any]) -> None:
        for variant in manifest["variants"]:
            for graph in variant["graphs"]:
                if graph["file"]["path"] == "graphs/block0.portable-fp32.onnx":
                    graph["file"] |= {"bytes": path.stat().st_size, "sha256": sha256(path)}

    edit_manifest(copy, follow)
    assert main(["verify", str(copy), "--variants", "portable-fp32"]) == 1
    out = capsys.readouterr().out
    assert "FAILED parser guard" in out and "block0.portable-fp32.onnx" in out and "beside" in out


def test_without_a_checkpoint_torch_is_not_needed(tiny_bundle: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from starflow.runtime.command_line import main\n"
        f"raise SystemExit(main(['verify', {str(tiny_bundle)!r}, '--backend', 'onnxruntime', '--json']))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["passed"]
