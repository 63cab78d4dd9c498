"""Engines of the networks beside the flow: which are built, in which precision, and what is not built again."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.export.tensorrt.build import BuildRequest
from starflow.export.tensorrt.engine_builder import begins_like_engine, build_engine
from starflow.export.tensorrt.half_precision import halved
from starflow.export.tensorrt.interpreter.interpreter import NetworkInterpreter
from starflow.export.tensorrt.network_build import BuiltNetwork, build_networks, wanted_networks
from starflow.export.tensorrt.network_inputs import network_runs
from starflow.export.tensorrt.network_precision import NetworkChoices, choose_precision
from starflow.export.tensorrt.parse import parse_graph
from starflow.export.tensorrt.target import parse_target
from starflow.runtime.backends.tensorrt.flavour import load_flavour
from starflow.runtime.bundle.build_record import read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.named_network import NetworkName, networks_of
from starflow.runtime.bundle.network_build import NetworkBuildRecord, check_network_engine, read_network_builds
from starflow.runtime.command_line import main
from tests.export.tensorrt.interpreter.onnx_graphs import parse, run_onnxruntime
from tests.models import write_captioned_latents
from tests.text_encoders import write_t5

RTX = ["--target", "tensorrt-rtx:8.9,12.0", "--profile-tokens", "1,16"]


def record(root: Path) -> NetworkBuildRecord:
    (only,) = read_network_builds(Bundle.open(root))
    return only


def build(root: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """What became of the networks."""
    assert main(["build", str(root), *RTX, "--json", *arguments]) == 0
    networks: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["networks"]
    return networks


def build_alone(root: Path, *names: NetworkName) -> list[BuiltNetwork]:
    """The same without the flow."""
    bundle, request = Bundle.open(root), BuildRequest()
    wanted = wanted_networks(bundle, bundle.places(), request, names or None)
    return build_networks(bundle, wanted, parse_target(RTX[1]), request)


@pytest.fixture
def copy(captioned_engines: Bundle, tmp_path: Path) -> Path:
    """A bundle with all engines, to change."""
    return Path(shutil.copytree(captioned_engines.root, tmp_path / "copy"))


# What is built


def test_engines_of_every_network(captioned_engines: Bundle) -> None:
    made = record(captioned_engines.root)
    assert (made.flavour, made.compute_capabilities) == ("tensorrt-rtx", ("8.9", "12.0"))
    networks = {network.spec.file.path: network for network in networks_of(captioned_engines.manifest)}
    assert [engine.graph for engine in made.engines] == list(networks)
    sizes = {}
    for engine in made.engines:
        path = check_network_engine(captioned_engines, made, engine, networks[engine.graph], digest=True)
        assert begins_like_engine(load_flavour("tensorrt-rtx"), path)
        assert engine.precision == "fp16" and 0 < engine.error <= 2.5e-3
        sizes[networks[engine.graph].name] = engine.file.bytes
    assert sizes.keys() == {"text-encoder", "encoder", "decoder", "noisy-decoder", "score", "learned"}
    (folder,) = captioned_engines.root.glob("engines/*/networks")
    assert {path.suffix for path in folder.iterdir()} <= {".engine", ".json", ".runtime-cache"}
    # A reader of before, which knows no networks.json, finds the flow's engines as ever.
    assert [each.variant for each in read_builds(captioned_engines)] == ["portable-fp16"]


def test_nothing_changed_nothing_is_built(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    assert all(each["unchanged"] for each in build(copy, capsys))
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == before


def test_only_what_is_damaged_is_built_again_and_others_stay(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = copy.glob("engines/*/networks")
    (decoder,) = folder.glob("decoder-*.engine")
    decoder.write_bytes(decoder.read_bytes()[:-1])
    (folder / ".encoder-0.engine.abandoned").write_bytes(b"of a build that was killed")
    (folder / "decoder-of-before.engine").write_bytes(b"old")
    (folder / "decoder-of-before.runtime-cache").write_bytes(b"kernels")
    before = {engine.graph: engine for engine in record(copy).engines}
    built = build(copy, capsys, "--networks", "decoder", "encoder")
    assert [(each["network"], each["unchanged"]) for each in built] == [("encoder", True), ("decoder", False)]
    made = record(copy)
    assert {engine.graph: engine.key for engine in made.engines} == {graph: each.key for graph, each in before.items()}
    assert {path for path in folder.iterdir() if path.suffix == ".engine"} == {
        copy / engine.file.path for engine in made.engines
    }
    assert not list(folder.glob(".*")) and not list(folder.glob("*of-before*"))


def test_a_stopped_build_keeps_what_was_finished(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = copy.glob("engines/*/networks")
    shutil.rmtree(folder)
    done: list[Any] = []

    def stopped(*arguments: Any, **options: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        build_engine(*arguments, **options)
        done.append(arguments)

    names = ["--networks", "text-encoder", "encoder", "decoder"]
    with monkeypatch.context() as patched:
        patched.setattr("starflow.export.tensorrt.network_build.build_engine", stopped)
        assert main(["build", str(copy), *RTX, *names]) == 130
    assert len(record(copy).engines) == len(list(folder.glob("*.engine"))) == 2
    capsys.readouterr()
    assert [each["unchanged"] for each in build(copy, capsys, *names)] == [True, True, False]


def test_what_is_not_asked_for_is_not_built(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(next(copy.glob("engines/*/networks")))
    assert build(copy, capsys, "--networks", "none") == []
    assert list(read_network_builds(Bundle.open(copy))) == []
    assert main(["build", str(copy), *RTX, "--networks", "none", "decoder"]) == 2
    assert "give none by itself" in capsys.readouterr().err
    assert main(["build", str(copy), *RTX, "--networks", "vocoder"]) == 2
    assert "--networks: found 'vocoder', expected one of 'text-encoder'" in capsys.readouterr().err


def test_a_network_the_bundle_lacks(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    root = shutil.copytree(tiny_bundle, tmp_path / "copy")
    assert main(["build", str(root), "--target", "tensorrt-rtx:8.9", "--networks", "decoder"]) == 2
    assert f"--networks decoder: {root} has no networks beside the flow" in capsys.readouterr().err
    assert not (root / "engines").exists()


# Precision


def test_activations_that_outgrow_float16_stay_float32(captioned_checkpoint: Path, tmp_path: Path) -> None:
    """A T5 as loud as published ones: its products around the loud values are float32, the others float16."""
    pytest.importorskip("tensorrt_rtx")
    loud = write_t5(tmp_path / "t5", loudness=1e6)
    options = ExportOptions(precisions=("fp16",), batch=2, text_encoder=str(loud))
    export_checkpoint(captioned_checkpoint, tmp_path / "bundle", options)
    bundle = Bundle.open(tmp_path / "bundle")
    (network,) = networks_of(bundle.manifest)
    choices = NetworkChoices(bundle, load_flavour("tensorrt-rtx"))
    choice = choices.of(network)
    assert max(peak for peak in choice.peaks.values() if peak < 1e30) > 65504
    assert choice.graph(bundle.path(network.spec.file)).precision == "mixed"
    assert all(np.isfinite(output).all() for output in choice.outputs)
    # Without the rule: the same graph with every product in float16.
    path = bundle.path(network.spec.file)
    half, wide = halved(onnx.load(path, load_external_data=False), dict.fromkeys(choice.peaks, 1.0))
    assert not wide
    interpreter = NetworkInterpreter(parse_graph(load_flavour("tensorrt-rtx"), path, model=half), rounding=True)
    inputs = network_runs(bundle)[network.spec.file.path][0].inputs
    assert not np.isfinite(interpreter.run(inputs)["features"]).all()
    (built,) = build_alone(bundle.root)
    assert built.spec.precision == "mixed" and 0 < built.spec.error <= 2.5e-3


def write_model(path: Path, nodes: list[onnx.NodeProto], **weights: np.ndarray) -> Path:
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4, 8])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4, 8])
    graph = helper.make_graph(nodes, "graph", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), path)
    return path


def test_a_network_float16_is_too_coarse_for_stays_float32(tmp_path: Path) -> None:
    """The result is a small difference of large products."""
    pytest.importorskip("tensorrt_rtx")
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "v"], ["b"]),
        helper.make_node("Sub", ["a", "b"], ["y"]),
    ]
    path = write_model(tmp_path / "graph.onnx", nodes, w=weight, v=weight * np.float32(1 + 1e-3))
    x = {"x": draw.standard_normal((4, 8)).astype(np.float32)}
    choice = choose_precision(load_flavour("tensorrt-rtx"), path, [x])
    assert (choice.narrow, choice.graph(path).precision) == (False, "fp32")
    np.testing.assert_allclose(choice.outputs[0], run_onnxruntime(path, x)["y"], atol=1e-5)


def test_what_computes_in_float16(tmp_path: Path) -> None:
    """Products, and what follows from them element by element; sums over many elements do not."""
    pytest.importorskip("tensorrt_rtx")
    nodes = [
        helper.make_node("Relu", ["x"], ["first"]),  # follows from no product
        helper.make_node("MatMul", ["first", "w"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Softmax", ["sum"], ["soft"]),
        helper.make_node("Mul", ["soft", "sum"], ["weighted"]),  # one of its inputs is float32
        helper.make_node("MatMul", ["weighted", "loud"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["y"]),
    ]
    weights = {"w": np.eye(8), "bias": np.ones(8), "loud": np.full((8, 8), 4e4)}
    arrays = {name: value.astype(np.float32) for name, value in weights.items()}
    path = write_model(tmp_path / "graph.onnx", nodes, **arrays)
    names = ("x", "first", "w", "bias", "product", "sum", "soft", "weighted", "wide", "y")
    half, wide = halved(onnx.load(path), dict.fromkeys(names, 1.0) | {"loud": 4e4})
    assert wide == ("wide",)
    onnx.checker.check_model(half, full_check=True)
    onnx.save(half, tmp_path / "half.onnx")
    types: dict[str, str] = {
        layer.get_output(0).name: layer.get_output(0).dtype.name
        for parsed in [parse(tmp_path / "half.onnx")]
        for layer in map(parsed.network.get_layer, range(parsed.network.num_layers))
    }
    assert {name for name in ("product/half", "sum/half") if types[name] == "HALF"} == {"product/half", "sum/half"}
    assert all(types[name] == "FLOAT" for name in ("first", "soft", "weighted", "wide", "y"))
    x = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}
    np.testing.assert_allclose(
        run_onnxruntime(tmp_path / "half.onnx", x)["y"], run_onnxruntime(path, x)["y"], rtol=2e-3
    )


# Several batch sizes


def test_each_batch_size_has_engines_and_the_text_encoder_one(tmp_path: Path, t5_folder: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    write_captioned_latents(tmp_path / "checkpoint", t5_folder)
    options = ExportOptions(precisions=("fp16",), batch=(1, 2), denoisers=())
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", options)
    built = build_alone(tmp_path / "bundle", "text-encoder", "decoder")
    graphs = [each.spec.graph.rpartition("/")[2] for each in built]
    assert graphs == ["text_encoder.fp32.onnx", "decoder.fp32.onnx", "decoder.fp32.batch1.onnx"]
    assert built[1].spec.precision == built[2].spec.precision == "fp16"
    assert built[1].spec.error == built[2].spec.error, "one choice for all batch sizes"
    assert len(record(tmp_path / "bundle").engines) == 3


@pytest.mark.slow
def test_the_emoji_model(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trained text encoder and autoencoder: all in float16, in half the bytes, agreeing through the parsed network."""
    pytest.importorskip("tensorrt_rtx")
    options = ExportOptions(precisions=("fp16",), batch=2)
    export_checkpoint(repository / "examples/emoji/checkpoint", tmp_path / "bundle", options)
    built = {each["network"]: each for each in build(tmp_path / "bundle", capsys)}
    assert built.keys() == {"text-encoder", "encoder", "decoder", "noisy-decoder"}
    assert all(each["precision"] == "fp16" and each["error"] < 2e-3 for each in built.values())
    assert built["text-encoder"]["bytes"] < 0.6 * built["text-encoder"]["weight_bytes"]
    assert main(["verify", str(tmp_path / "bundle"), "--backend", "network", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {m["route"] for m in said["measurements"]} >= {
        f"network {name}" for name in ("text encoder", "encoder", "decoder", "noisy decoder")
    }
