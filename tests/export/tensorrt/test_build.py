"""Building a bundle's engines with the real TensorRT RTX: what is built, what is not built again, what is left."""

import dataclasses
import json
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import helper

from starflow.export.exporter import export_checkpoint
from starflow.export.tensorrt.build import BuildRequest, BuiltEngine, build_bundle
from starflow.export.tensorrt.engine_builder import begins_like_engine
from starflow.export.tensorrt.target import parse_target
from starflow.runtime.backends.tensorrt.build import check_version
from starflow.runtime.backends.tensorrt.flavour import Flavour, load_flavour
from starflow.runtime.backends.tensorrt.messages import MessageLog
from starflow.runtime.bundle.build_record import (
    BuildOptions,
    BuildRecord,
    check_engine_file,
    read_builds,
)
from starflow.runtime.bundle.bundle import Bundle, sha256
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import BundleError, ExportError, UsageError
from tests.export.tensorrt.conftest import RTX, SMALL, EditGraph


def build(root: Path, request: BuildRequest = SMALL, target: str = RTX) -> list[BuiltEngine]:
    return build_bundle(Bundle.open(root), parse_target(target), request)


def rebuilt(built: list[BuiltEngine]) -> list[int]:
    return [engine.spec.block for engine in built if engine.seconds is not None]


def record(root: Path) -> BuildRecord:
    (only,) = read_builds(Bundle.open(root))
    return only


def profiles(made: BuildRecord) -> list[tuple[int, int, int]]:
    return [(profile.minimum, profile.optimum, profile.maximum) for profile in made.profiles]


def engine_files(root: Path) -> set[Path]:
    """Everything under engines/ but the lock, also hidden files."""
    return {path for path in (root / "engines").rglob("*") if path.is_file()}


# What is built


def test_engines_of_a_bundle(pristine: Path) -> None:
    bundle, made = Bundle.open(pristine), record(pristine)
    assert (made.flavour, made.version) == ("tensorrt-rtx", load_flavour("tensorrt-rtx").version)
    assert made.compute_capabilities == ("8.9", "12.0")
    assert made.variant == "portable-fp16"  # of the four variants the only portable one of 16 bits
    assert profiles(made) == [(1, 1, 1)]
    assert [engine.block for engine in made.engines] == [0, 1]
    paths = {check_engine_file(bundle, made, engine, digest=True).resolve() for engine in made.engines}
    assert engine_files(pristine) == paths | {pristine / "engines/tensorrt-rtx-8.9_12.0/portable-fp16/build.json"}
    check_version(bundle, made, load_flavour("tensorrt-rtx"), "")


def test_headers_are_those_of_an_engine(pristine: Path, tmp_path: Path) -> None:
    """Without a GPU TensorRT calls no engine valid, but it tells a header from what is none, and which release wrote it."""
    flavour = load_flavour("tensorrt-rtx")
    trt, log = flavour.trt, MessageLog(flavour, "INFO")
    runtime = trt.Runtime(log.logger)
    malformed = int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    for engine in record(pristine).engines:
        content = bytearray((pristine / engine.file.path).read_bytes()[: runtime.engine_header_size])
        assert len(content) == runtime.engine_header_size
        assert not runtime.get_engine_validity(bytes(content))[1] & malformed
        assert not any("has been created with" in text for _, text in log.entries)
        assert begins_like_engine(flavour, pristine / engine.file.path)
        content[0] ^= 1
        assert runtime.get_engine_validity(bytes(content))[1] & malformed
        (tmp_path / "damaged.engine").write_bytes(content)
        assert not begins_like_engine(flavour, tmp_path / "damaged.engine")
    assert not begins_like_engine(flavour, pristine / "manifest.json")


def test_the_shipped_model(digits_engines: Bundle) -> None:
    """The digits model: every block, three profiles, blocks of 49 and of 50 positions."""
    made = record(digits_engines.root)
    assert [engine.block for engine in made.engines] == [0, 1, 2, 3]
    assert (len(made.profiles), made.max_tokens) == (3, 50)
    weights = {graph.block: graph.weight_bytes for graph in digits_engines.variant("portable-fp16", "portable").graphs}
    for engine in made.engines:
        assert begins_like_engine(load_flavour("tensorrt-rtx"), digits_engines.root / engine.file.path)
        assert engine.file.bytes > weights[engine.block]


def test_float32_is_built_where_it_is_named(copy: Path) -> None:
    """For looking for the cause of a difference; TensorRT has no fused attention for it and has to be allowed another."""
    built = build(copy, dataclasses.replace(SMALL, variants=["portable-fp32"]))
    assert [engine.variant for engine in built] == ["portable-fp32"] * 2


def test_blocks_with_patches_of_their_own(rtx: None, patches_bundle: Path, tmp_path: Path) -> None:
    """An engine for each block, whatever the width and the number of its tokens."""
    shutil.copytree(patches_bundle, root := tmp_path / "copy")
    request = BuildRequest(variants=["portable-fp32"], profile_tokens=(1, 16))
    assert rebuilt(build(root, request)) == [0, 1, 2]
    made = record(root)
    assert made.compute_capabilities == ("8.9", "12.0")
    for engine in made.engines:
        assert begins_like_engine(load_flavour("tensorrt-rtx"), root / engine.file.path)


# What is not built again


def test_nothing_changed_nothing_is_built(built: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, sha256(path)) for path in engine_files(built)}
    assert rebuilt(build(built)) == []
    assert {path: (path.stat().st_mtime_ns, sha256(path)) for path in engine_files(built)} == before


@pytest.mark.parametrize(
    "asked",
    [
        BuildRequest(profile_tokens=(1, 4)),
        dataclasses.replace(SMALL, options=BuildOptions(workspace_bytes=1 << 30)),
        dataclasses.replace(SMALL, options=BuildOptions(optimization_level=1)),
        dataclasses.replace(SMALL, force=True),
    ],
    ids=["profiles", "workspace", "level", "force"],
)
def test_another_option_builds_again(built: Path, asked: BuildRequest) -> None:
    old = record(built)
    assert rebuilt(build(built, asked)) == [0, 1]
    new = record(built)
    assert new.options == asked.options
    assert profiles(new) == [(1, 1, 1), (1, 4, 4)][: len(asked.profile_tokens)]
    changed = [a.key != b.key for a, b in zip(old.engines, new.engines, strict=True)]
    assert changed == [not asked.force] * 2
    assert len(engine_files(built)) == 3  # those of before are gone
    assert rebuilt(build(built, dataclasses.replace(asked, force=False))) == []


def test_another_target_has_engines_of_its_own(built: Path) -> None:
    assert rebuilt(build(built, target="tensorrt-rtx:8.9")) == [0, 1]
    assert [made.target for made in read_builds(Bundle.open(built))] == ["tensorrt-rtx-8.9", "tensorrt-rtx-8.9_12.0"]
    assert rebuilt(build(built)) == []


def test_only_the_block_whose_graph_changed_is_built(copy: Path, edit_graph: EditGraph) -> None:
    build(copy)
    edit_graph(1, lambda model: helper.set_model_props(model, {"note": "another graph"}))
    assert rebuilt(build(copy)) == [1]


def test_what_the_runtime_keeps_beside_an_engine_goes_with_it(built: Path) -> None:
    (engine, other) = (built / each.file.path for each in record(built).engines)
    engine.with_suffix(".runtime-cache").write_bytes(b"kernels")
    build(built)
    assert engine.with_suffix(".runtime-cache").exists()
    build(built, dataclasses.replace(SMALL, options=BuildOptions(optimization_level=1)))
    assert not engine.with_suffix(".runtime-cache").exists() and not other.exists()


# Damage


def test_a_truncated_engine(built: Path) -> None:
    bundle, made = Bundle.open(built), record(built)
    path = built / made.engines[1].file.path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        BundleError, match=r"has \d+ bytes, build\.json says \d+; build again: starflow build .* --target"
    ):
        check_engine_file(bundle, made, made.engines[1])
    assert rebuilt(build(built)) == [1]
    made = record(built)
    check_engine_file(bundle, made, made.engines[1], digest=True)


def test_a_flipped_bit(built: Path) -> None:
    bundle, made = Bundle.open(built), record(built)
    path = built / made.engines[0].file.path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    check_engine_file(bundle, made, made.engines[0])  # its size is right
    with pytest.raises(BundleError, match=r"content is not what was built; build again: .* --force"):
        check_engine_file(bundle, made, made.engines[0], digest=True)
    assert rebuilt(build(built)) == [0]


def test_a_missing_engine(built: Path) -> None:
    bundle, made = Bundle.open(built), record(built)
    (built / made.engines[0].file.path).unlink()
    with pytest.raises(BundleError, match=r"block0-.*\.engine: is missing; build again: starflow build"):
        check_engine_file(bundle, made, made.engines[0])
    assert rebuilt(build(built)) == [0]


def test_an_engine_that_no_record_names(built: Path) -> None:
    """It is taken over from a build that was killed, unless it is no engine at all."""
    first, _ = record(built).engines
    (built / first.file.path).with_name("build.json").unlink()
    (built / first.file.path).write_bytes(b"not an engine")
    assert rebuilt(build(built)) == [0]
    made = record(built)
    assert made.engines[0].key == first.key
    check_engine_file(Bundle.open(built), made, made.engines[0], digest=True)


def test_engines_of_another_graph(copy: Path, edit_graph: EditGraph) -> None:
    """Engines copied into a bundle that was exported anew."""
    build(copy)
    edit_graph(0, lambda model: helper.set_model_props(model, {"note": "another graph"}))
    bundle, made = Bundle.open(copy), record(copy)
    with pytest.raises(BundleError, match="was not built from the present graph of flow block 0"):
        check_engine_file(bundle, made, made.engines[0])
    check_engine_file(bundle, made, made.engines[1])


def test_an_engine_outside_the_bundle(built: Path) -> None:
    bundle, made = Bundle.open(built), record(built)
    engine = made.engines[0]
    moved = engine.model_copy(update={"file": engine.file.model_copy(update={"path": "graphs/../../elsewhere.engine"})})
    with pytest.raises(BundleError, match="lies outside"):
        check_engine_file(bundle, made, moved)


def test_engines_of_another_flavour_or_release(built: Path) -> None:
    bundle, made = Bundle.open(built), record(built)
    flavour = load_flavour("tensorrt-rtx")
    older = made.model_copy(update={"version": "1.6.0.1"})
    with pytest.raises(BundleError, match=r"built by tensorrt-rtx 1\.6\.0\.1 .*; build again: starflow build"):
        check_version(bundle, older, flavour, older.command(bundle))
    with pytest.raises(BundleError, match=r"built by tensorrt-rtx .* and load only there; tensorrt .* is installed"):
        check_version(bundle, made, Flavour("tensorrt", flavour.trt), "")


def test_the_command_that_builds_again(built: Path) -> None:
    made = record(built)
    command = made.model_copy(update={"options": BuildOptions(workspace_bytes=1 << 30, optimization_level=2)}).command(
        Bundle.open(built)
    )
    words = command.split()
    assert words[:2] == ["starflow", "build"]
    assert main([*words[1:], "--json"]) == 0
    assert record(built).options == BuildOptions(workspace_bytes=1 << 30, optimization_level=2)
    assert (record(built).profiles, record(built).target) == (made.profiles, made.target)


# What cannot be built


def test_an_operator_that_tensorrt_lacks(copy: Path, edit_graph: EditGraph) -> None:
    def add_operator(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Det", ["noise_square"], ["det"], name="output/Det"))
        model.graph.node.append(helper.make_node("MatMul", ["x", "x_turned"], ["noise_square"], name="output/MatMul"))
        model.graph.node.append(helper.make_node("Transpose", ["x"], ["x_turned"], perm=[0, 2, 1]))
        model.graph.output.append(helper.make_tensor_value_info("det", onnx.TensorProto.FLOAT, [2]))

    edit_graph(1, add_operator)
    with pytest.raises(ExportError, match=r"flow block 1: .*node output/Det \(Det\)"):
        build(copy)
    assert list(read_builds(Bundle.open(copy))) == []


def test_the_guard_comes_first(copy: Path, edit_graph: EditGraph) -> None:
    def misread(model: onnx.ModelProto) -> None:
        attention = next(node for node in model.graph.node if node.op_type == "Attention")
        attention.input[:] = [*attention.input[:3], "", "", "", "position"]

    edit_graph(0, misread)
    with pytest.raises(ExportError, match=r"flow block 0: node layer0/Attention .*nonpad_kv_seqlen"):
        build(copy)
    assert engine_files(copy) == set()


def test_the_named_capabilities_reach_tensorrt(copy: Path) -> None:
    request = dataclasses.replace(SMALL, variants=["portable-fp32"])
    with pytest.raises(ExportError, match=r"flow block 0: tensorrt-rtx cannot build it: .*Turing.*FP32 GEMM"):
        build(copy, request, "tensorrt-rtx:7.5,8.9")


def test_too_little_memory(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starflow.export.tensorrt.build_resources.available_memory", lambda: 100 << 20)
    with pytest.raises(ExportError, match=r"flow block 0: the build needs about 0\.5. GiB .* 0\.10 GiB are available"):
        build(copy)
    assert engine_files(copy) == set()


def test_what_tensorrt_refuses_to_build_is_quoted(copy: Path) -> None:
    request = dataclasses.replace(SMALL, options=BuildOptions(workspace_bytes=1))
    with pytest.raises(
        ExportError, match=r"flow block 0: tensorrt-rtx cannot build it: .*; give it more with --workspace$"
    ):
        build(copy, request)
    assert engine_files(copy) == set()


def test_a_graph_that_is_not_what_was_exported(copy: Path) -> None:
    path = copy / "graphs" / "weights" / "fp16.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"fp16\.safetensors: changed since it was exported"):
        build(copy)


def test_a_bundle_without_16_bits(tiny_checkpoint: Path, rtx: None, tmp_path: Path) -> None:
    export_checkpoint(tiny_checkpoint, tmp_path / "bundle")
    with pytest.raises(UsageError, match="has no portable 16-bit variant; export it with --precision fp16"):
        build(tmp_path / "bundle")


# The command


def test_the_command(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", str(built), "--target", RTX, "--profile-tokens", "1"]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "tensorrt-rtx-8.9_12.0" in table and table.count("unchanged") == 2
    assert main([*arguments, "--force", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [(each["block"], each["unchanged"]) for each in answer["engines"]] == [(0, False), (1, False)]
    assert all((built / each["path"]).stat().st_size == each["bytes"] for each in answer["engines"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "tensorrt-rtx:9.0"], "Hopper"),
        (["--target", RTX, "--workspace", "2GB"], "--workspace 2GB: give a size such as 512MiB"),
        (["--target", RTX, "--workspace", "0"], "--workspace 0"),
        (["--target", RTX, "--profile-tokens", "1,x"], "--profile-tokens 1,x"),
        (["--target", RTX, "--profile-tokens", "0"], "--profile-tokens 0"),
        (["--target", RTX, "--optimization-level", "9"], "--optimization-level: found 9, expected one of 0, 1"),
        (["--target", RTX, "--variant", "cpu-fp32"], "ONNX Runtime on a CPU"),
    ],
)
def test_wrong_use(
    tiny_bundle: Path, rtx: None, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(tiny_bundle), *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not (tiny_bundle / "engines").exists()
