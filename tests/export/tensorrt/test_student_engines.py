"""Students as engines for two generations of GPUs, through the parsed network, and on a simulated device without ONNX Runtime."""

import json
import shutil
from pathlib import Path

import onnx
import pytest

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.export.tensorrt.engine_builder import begins_like_engine
from starflow.runtime import Sampler
from starflow.runtime.backends.tensorrt.backend import TensorrtBackend
from starflow.runtime.backends.tensorrt.flavour import load_flavour
from starflow.runtime.bundle.build_record import read_builds
from starflow.runtime.bundle.bundle import Bundle, sha256
from starflow.runtime.bundle.named_network import networks_of
from starflow.runtime.bundle.network_build import check_network_engine, read_network_builds
from starflow.runtime.command_line import main
from starflow.runtime.plans.decode_plan import DecodePlan
from tests.edited_manifest import edit_manifest
from tests.made_once import MadeOnce
from tests.models import class_config, write_checkpoint
from tests.simulated_device.engine_library import EngineLibrary
from tests.simulated_device.fixtures import Simulate
from tests.simulated_device.sampling import relative_error
from tests.students import write_student

NAMES = ["student of flow block 0", "student of flow block 1"]
HALF = 5e-3  # what `starflow verify` allows networks whose products are float16


@pytest.fixture(scope="module")
def made(made_once: MadeOnce, engine_library: EngineLibrary) -> Path:
    """A checkpoint, students of both of its flow blocks, and their bundle with engines."""
    pytest.importorskip("tensorrt_rtx")

    def fill(folder: Path) -> None:
        write_checkpoint(folder / "checkpoint", class_config())
        students = [str(folder / f"student{block}") for block in (0, 1)]
        for block, student in enumerate(students):
            write_student(Path(student), folder / "checkpoint", block)
        options = ExportOptions(batch=2, precisions=("fp32", "fp16"), students=students)
        export_checkpoint(folder / "checkpoint", folder / "bundle", options)
        target = ["--target", "tensorrt-rtx:8.9,12.0", "--profile-tokens", "1,16"]
        assert main(["build", str(folder / "bundle"), *target]) == 0

    folder = made_once("student-engines", fill)
    bundle = Bundle.open(folder / "bundle")
    engine_library.add(bundle, *read_builds(bundle))
    engine_library.add_networks(bundle, *read_network_builds(bundle))
    return folder


def test_an_engine_of_each(made: Path) -> None:
    bundle = Bundle.open(made / "bundle")
    (record,) = read_network_builds(bundle)
    assert record.compute_capabilities == ("8.9", "12.0")
    networks = {network.spec.file.path: network for network in networks_of(bundle.manifest)}
    assert [networks[engine.graph].words for engine in record.engines] == NAMES
    for engine in record.engines:
        path = check_network_engine(bundle, record, engine, networks[engine.graph], digest=True)
        assert begins_like_engine(load_flavour("tensorrt-rtx"), path)
        assert engine.precision == "fp16" and 0 < engine.error <= HALF / 2


def test_on_a_device_without_onnxruntime(made: Path, simulate: Simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the engines of the students run."""
    bundle = Bundle.open(made / "bundle")
    with Sampler.open(bundle, backend="onnxruntime", variant="portable-fp16", plan="student", threads=1) as sampler:
        noise = sampler.noise(3, seed=2)
        expected = sampler.generate(noise, [1, 2, 3], guidance=1.5)
    simulate(capability="12.0")
    monkeypatch.setattr(TensorrtBackend, "block_runner", _refuse)
    monkeypatch.setattr("starflow.runtime.sampler.onnxruntime_networks", _refuse)
    with Sampler.open(bundle, backend="tensorrt", plan="student") as sampler:
        found = sampler.generate(noise, [1, 2, 3], guidance=1.5)
        assert isinstance(sampler.plan, DecodePlan)
    assert 0 < relative_error(found, expected) <= HALF


def _refuse(*_: object) -> None:
    raise AssertionError("something else than the engines of the students runs")


def verify(capsys: pytest.CaptureFixture[str], made: Path, *arguments: str) -> tuple[int, dict[str, dict], list[str]]:
    """Exit status, measurements of the students by route, and what did not run."""
    status = main(["verify", str(made / "bundle"), "--json", *arguments])
    said = json.loads(capsys.readouterr().out)
    found = {each["route"]: each for each in said["measurements"] if each["kind"] == "student"}
    return status, found, [each["route"] for each in said["not_run"]]


def test_verified_against_pytorch_and_through_the_parsed_network(made: Path, capsys: pytest.CaptureFixture) -> None:
    given = [part for block in (0, 1) for part in ("--student", str(made / f"student{block}"))]
    status, found, not_run = verify(capsys, made, "--backend", "onnxruntime", "--network", *given)
    assert (status, not_run) == (0, [])
    assert list(found) == [*NAMES, *(f"network {name}" for name in NAMES)]
    assert all(found[name]["relative"] < 1e-5 for name in NAMES)
    assert all(1e-5 < found[f"network {name}"]["relative"] < HALF for name in NAMES), "in float16"


def test_students_of_other_weights_are_found(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    student = write_student(tmp_path / "other", made / "checkpoint", 1)
    write_student(tmp_path / "first", made / "checkpoint", 0)
    from starflow.training.students.folder import save_student

    student.embed_guidance[0].weight.data.mul_(1.01)  # type: ignore[operator]
    save_student(tmp_path / "other", student, student.config)
    given = ["--backend", "onnxruntime", "--student", str(tmp_path / "other")]
    status, found, not_run = verify(capsys, made, *given)
    assert status == 1
    assert not found[NAMES[1]]["passed"]
    assert not_run == [NAMES[0]]


@pytest.mark.parametrize("change", ["twice", "of another checkpoint"])
def test_students_that_are_not_of_the_bundle(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture, change: str
) -> None:
    write_student(tmp_path / "s", made / "checkpoint", 1, teacher=None if change == "twice" else "0" * 64)
    given = ["--student", str(tmp_path / "s"), "--student", str(made / "student1")]
    assert main(["verify", str(made / "bundle"), *given]) in (1, 2)
    error = capsys.readouterr().err
    assert (
        "another folder is of this block" if change == "twice" else "was distilled from another checkpoint"
    ) in error
    assert error.count("\n") == 1


def test_a_graph_that_computes_something_else_is_found(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The bundle's graph is damaged, and the manifest agrees with it."""
    shutil.copytree(made / "bundle", tmp_path / "bundle")
    path = tmp_path / "bundle/graphs/student1.fp32.onnx"
    model = onnx.load(path, load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    node.op_type = "Tanh"
    onnx.save(model, path)

    def follow(manifest: dict) -> None:
        manifest["students"][1]["network"]["file"] |= {"bytes": path.stat().st_size, "sha256": sha256(path)}

    edit_manifest(tmp_path / "bundle", follow)
    given = [part for block in (0, 1) for part in ("--student", str(made / f"student{block}"))]
    status, found, _ = verify(capsys, tmp_path, "--backend", "onnxruntime", *given)
    assert status == 1
    assert [each["passed"] for each in found.values()] == [True, False]


def test_inspect_lists_them(made: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", str(made / "bundle")]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("students   flow block 0, "))
    assert lines[first + 1].startswith(
        "           flow block 1, 0.2 MiB, guidance 0 to 3; pair error 0.31, Frechet distance 2.5"
    )


def by_plan(capsys: pytest.CaptureFixture) -> dict:
    """What bench says of sampling by the plan."""
    found: dict = next(each for each in json.loads(capsys.readouterr().out)["variants"] if each["decoding"] == "plan")
    return found


def test_bench_counts_the_pass_of_a_student(made: Path, capsys: pytest.CaptureFixture) -> None:
    bundle = Bundle.open(made / "bundle")
    given = ["bench", str(bundle.root), "--backend", "onnxruntime", "--repetitions", "1", "--threads", "1", "--json"]
    given += ["--variant", "cpu-fp32"]
    assert main([*given, "--plan", "student+2"]) == 0
    variant = by_plan(capsys)
    deep, shallow, _ = variant["rows"]
    assert (deep["passes"], shallow["passes"]) == (3, 3)
    assert main([*given, "--plan", "student"]) == 0
    variant = by_plan(capsys)
    deep, shallow, _ = variant["rows"]
    tokens = bundle.autoregressive.model.tokens
    assert (deep["passes"], shallow["passes"]) == (1, 1)
    assert deep["bytes"] == round(bundle.autoregressive.students[1].network.weight_bytes / tokens)
    assert variant["error"] > 0.1
