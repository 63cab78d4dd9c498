"""Quantised variants of a bundle: their error, their files, their manifest, and that they run."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from starflow.calibration.cases import Cases, draw_cases
from starflow.calibration.plans.command import default_budget
from starflow.calibration.weights.calibration import calibrate_weights
from starflow.calibration.weights.report import write_report
from starflow.calibration.weights.results import ALL, PLAIN, SOURCE, WeightCalibration, WeightRequest
from starflow.calibration.weights.variant_times import time_variant
from starflow.calibration.weights.variant_writer import VariantWriter
from starflow.export.tensorrt.build import BuildRequest, build_bundle
from starflow.export.tensorrt.interpreter.backend import NetworkBackend
from starflow.export.tensorrt.target import parse_target
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import BundleError, ExportError, NotFiniteError, UsageError
from starflow.runtime.plain.processor import processor
from starflow.runtime.plans.decode_plan import BlockPlan, Chunk, DecodePlan
from starflow.runtime.sampler import Sampler
from starflow.runtime.traces.autoregressive import decode_given, sample_trace
from starflow.runtime.traces.case import draw_case
from tests.calibration.conftest import BUDGET, IMAGES, SEED

Calibrated = tuple[Path, list[WeightCalibration]]
NAMES = ["cpu-int8", "portable-int8", "cpu-int4", "portable-int4", "portable-fp8"]


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def cases(root: Path) -> Cases:
    return draw_cases(Bundle.open(root), IMAGES, SEED)


def drawn(root: Path, variant: str, cases: Cases) -> np.ndarray:
    with Sampler.open(root, backend="onnxruntime", variant=variant, threads=1) as sampler:
        return sampler.generate(cases.check.noise, cases.check.condition, guidance=cases.check.guidance)


def test_variants_stand_behind_those_that_were_there(calibrated: Calibrated, wide_bundle: Path) -> None:
    root, found = calibrated
    before, bundle = Bundle.open(wide_bundle).manifest.variants, Bundle.open(root)
    bundle.verify_hashes()
    assert bundle.manifest.variants[: len(before)] == before
    assert [variant.name for variant in bundle.manifest.variants[len(before) :]] == NAMES
    assert [each.variant for each in found] == list(bundle.manifest.variants[len(before) :])
    with Sampler.open(root, backend="onnxruntime", threads=1) as sampler:
        assert sampler.variant.name == "cpu-fp32"


@pytest.mark.parametrize("name", ["cpu-int8", "cpu-int4"])
def test_error_is_what_the_manifest_says_and_within_the_budget(calibrated: Calibrated, name: str) -> None:
    root, _ = calibrated
    record = Bundle.open(root).variant(name, "cpu").quantization
    assert record is not None and record.error and record.budget and record.plain_error
    error = relative(drawn(root, name, cases(root)), drawn(root, "cpu-fp32", cases(root)))
    assert error == pytest.approx(record.error, rel=1e-3)
    assert 0 < record.error <= record.budget < 1.2 * record.plain_error
    assert set(record.matrices.values()) >= {"int8" if name == "cpu-int8" else "int4"}


def test_caches_are_of_8_bits_where_the_budget_bears_it(wide_bundle: Path, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(wide_bundle, root)
    bundle = Bundle.open(root)
    request = WeightRequest("int8", budget=0.5, lowerings=["cpu"], threads=1, product="block")
    (found,) = calibrate_weights(bundle, request, draw_cases(bundle, IMAGES, SEED))
    assert found.variant.quantization is not None
    assert found.variant.quantization.caches == (0, 1)
    for graph in found.variant.graphs:
        assert {spec.dtype for spec in graph.inputs if spec.role == "cache"} == {"int8"}
    drawn_error = relative(drawn(root, "cpu-int8", cases(root)), drawn(root, "cpu-fp32", cases(root)))
    assert drawn_error == pytest.approx(found.chosen.error.total, rel=1e-3)


@pytest.fixture(scope="module")
def by_row(wide_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WeightCalibration]:
    """The same with integer products by row; not to be changed."""
    root = tmp_path_factory.mktemp("by_row") / "bundle"
    shutil.copytree(wide_bundle, root)
    bundle = Bundle.open(root)
    request = WeightRequest("int8", budget=BUDGET, lowerings=["cpu"], threads=1, product="row")
    (found,) = calibrate_weights(bundle, request, draw_cases(bundle, IMAGES, SEED))
    return root, found


def test_products_by_row_stay_within_the_budget(by_row: tuple[Path, WeightCalibration]) -> None:
    root, found = by_row
    record = found.variant.quantization
    assert record is not None and record.error is not None
    assert set(record.matrices.values()) <= {"int8-row", "int8-row-wide", "kept"} != {"kept"}
    error = relative(drawn(root, "cpu-int8", cases(root)), drawn(root, "cpu-fp32", cases(root)))
    assert error == pytest.approx(record.error, rel=1e-3) and 0 < error <= BUDGET
    for matrix in found.matrices:
        assert matrix.output_error < 0.8 * matrix.plain_output_error, matrix
    for graph in found.variant.graphs:
        model = onnx.load(root / graph.file.path, load_external_data=False)
        names = [tensor.name for tensor in model.graph.initializer]
        rounded = [name for name, kind in record.matrices.items() if kind != "kept" and f"{name}.int8" in names]
        assert rounded and not set(rounded) & set(names), "a weight is stored once"
        assert sum(node.op_type == "MatMulInteger" for node in model.graph.node) == len(rounded)
    Bundle.open(root).verify_hashes()


def test_a_variant_is_timed_against_its_source(calibrated: Calibrated) -> None:
    for name in ("cpu-int8", "cpu-int4"):
        record = Bundle.open(calibrated[0]).variant(name, "cpu").quantization
        assert record is not None and record.timing is not None
        assert record.timing.processor == processor()
        (timed,) = record.timing.batches
        assert timed.batch == 4 and 0.01 < min(timed.step, timed.chunk) < max(timed.step, timed.chunk) < 100
    portable = Bundle.open(calibrated[0]).variant("portable-int8", "portable").quantization
    assert portable is not None and portable.timing is None, "how long an engine takes, only its GPU knows"


def test_a_variant_timed_against_itself_takes_as_long(wide_bundle: Path) -> None:
    bundle = Bundle.open(wide_bundle)
    timing = time_variant(bundle.places(), "cpu-fp32", [bundle.variant("cpu-fp32", "cpu")], 1, lambda: None)
    (timed,) = timing.batches
    assert 0.6 < timed.step < 1.6 and 0.6 < timed.chunk < 1.6


def test_an_image_by_row_does_not_depend_on_its_batch(by_row: tuple[Path, WeightCalibration]) -> None:
    root, _ = by_row
    check = cases(root).check
    assert check.condition is not None
    with Sampler.open(root, backend="onnxruntime", variant="cpu-int8", threads=1, plan="sequential") as sampler:
        together = sampler.generate(check.noise[:4], check.condition[:4], guidance=check.guidance)
        others = np.concatenate([check.noise[:1], 3 * check.noise[5:8]])
        mixed = sampler.generate(others, check.condition[:4], guidance=check.guidance)
    assert np.array_equal(together[0], mixed[0]) and not np.array_equal(together[1:], mixed[1:])


def test_wide_passes_by_row_make_what_single_steps_make(by_row: tuple[Path, WeightCalibration]) -> None:
    root, _ = by_row
    case, found = cases(root).check, []
    tokens = Bundle.open(root).autoregressive.decoded_tokens()
    chunks = DecodePlan(
        blocks=tuple(
            BlockPlan(block=block, segments=(Chunk(tokens=count, passes=count),)) for block, count in tokens.items()
        )
    )
    for plan in ("sequential", chunks):
        with Sampler.open(root, backend="onnxruntime", variant="cpu-int8", threads=1, plan=plan) as sampler:
            found.append(sampler.generate(case.noise, case.condition, guidance=case.guidance))
    # Attention over many tokens differs from that over one in the last bit, which now and then rounds an activation otherwise.
    exact = drawn(root, "cpu-fp32", cases(root))
    steps, passes = (relative(each, exact) for each in found)
    assert 0 < relative(found[1], found[0]) < 1.5 * steps and 0.5 * steps < passes < 1.5 * steps


def test_plans_are_searched_for_products_by_row_and_verify_runs_them(
    by_row: tuple[Path, WeightCalibration], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(by_row[0], root)
    variant = Bundle.open(root).variant("cpu-int8", "cpu")
    assert variant.quantization and variant.quantization.error
    assert default_budget(variant) == variant.quantization.error > 1e-3
    assert default_budget(Bundle.open(root).variant("cpu-fp32", "cpu")) == 1e-3
    given = ["--images", "4", "--threads", "1", "--variant", "cpu-int8", "--json"]
    assert main(["calibrate", str(root), "--plan", *given]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["budget"] == variant.quantization.error
    plans = Bundle.open(root).autoregressive.plans
    assert all(plan.variant == "cpu-int8" and plan.error <= plan.budget == told["budget"] for plan in plans)
    assert main(["verify", str(root), "--variant", "cpu-int8", "cpu-fp32", "--tolerance", "int8.sample=1e-1"]) == 0
    with pytest.raises(UsageError, match="portable"):
        build_bundle(Bundle.open(root), parse_target("tensorrt-rtx:8.9"), BuildRequest(variants=["cpu-int8"]))


@pytest.mark.parametrize("name", ["portable-int8", "portable-int4", "portable-fp8"])
def test_portable_variants_stay_close_as_they_are_run(calibrated: Calibrated, name: str) -> None:
    root, _ = calibrated
    record = Bundle.open(root).variant(name, "portable").quantization
    assert record is not None and record.error and record.budget and record.error <= record.budget
    exact, halves = (drawn(root, other, cases(root)) for other in ("cpu-fp32", "portable-fp16"))
    assert relative(drawn(root, name, cases(root)), exact) < 1.5 * (record.error + relative(halves, exact))


def test_calibration_beats_plain_rounding(calibrated: Calibrated) -> None:
    for found in calibrated[1]:
        for matrix in found.matrices:
            assert matrix.output_error < 0.8 * matrix.plain_output_error, matrix
        whole, plain = found.measurement(ALL), found.measurement(PLAIN)
        assert whole.bytes == plain.bytes < found.measurement(SOURCE).bytes
        # What activations lose at 8 bits is the same for both.
        assert whole.error.total < (1.0 if found.variant.name == "cpu-int8" else 0.6) * plain.error.total
        assert found.chosen.bytes < 0.7 * found.measurement(SOURCE).bytes


def test_weight_bytes_are_those_in_the_file_and_the_border_is_unchanged(calibrated: Calibrated) -> None:
    root, found = calibrated
    bundle = Bundle.open(root)
    for each in found:
        variant = each.variant
        source = bundle.variant(variant.quantization.source, "cpu")  # type: ignore[union-attr]
        for graph, original in zip(variant.graphs, source.graphs, strict=True):
            border, expected = (graph.inputs + graph.outputs, original.inputs + original.outputs)
            if graph.block in variant.quantization.caches:  # type: ignore[union-attr]
                border = tuple(t.model_copy(update={"dtype": "float32"}) if t.dtype == "int8" else t for t in border)
            assert border == expected
            model = onnx.load(root / graph.file.path, load_external_data=False)
            places = [{e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data]
            assert {place["location"] for place in places} == {variant.weights.path.removeprefix("graphs/")}
            assert graph.weight_bytes == sum(int(place["length"]) for place in places)
            assert graph.weight_bytes < original.weight_bytes
        read = sum(graph.weight_bytes for graph in variant.graphs)
        assert read == each.chosen.bytes
        # Nothing but what is read, and padding: the file is the variant's own.
        assert read <= variant.weights.bytes < read + 2_000_000


@pytest.mark.parametrize("name", ["portable-int8", "portable-int4", "portable-fp8"])
def test_tensorrt_reads_what_onnx_runtime_runs(calibrated: Calibrated, name: str) -> None:
    """TensorRT's own parser reads the graph, the interpreter runs what it made of it: given tokens leave rounding only."""
    root, _ = calibrated
    bundle = Bundle.open(root)
    variant = bundle.variant(name, "portable")
    case = draw_case(bundle, 4, 0)
    with (
        OnnxRuntimeBackend(bundle, variant, threads=1) as mine,
        NetworkBackend(bundle, variant, rounding=True) as theirs,
    ):
        trace = sample_trace(bundle, variant, mine, case)
        for graph in variant.graphs:
            block, exact = bundle.autoregressive.blocks[graph.block], trace.tokens[graph.block]
            found = decode_given(theirs.block_runner(graph.block), block, trace.inputs[graph.block][0], exact)
            assert relative(found, exact) < 3e-3


@pytest.mark.parametrize("name", ["portable-int4", pytest.param("portable-fp8", marks=pytest.mark.slow)])
def test_engines_build_for_ada(calibrated: Calibrated, tmp_path: Path, name: str) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(calibrated[0], root)
    built = build_bundle(Bundle.open(root), parse_target("tensorrt-rtx:8.9"), BuildRequest(variants=[name]))
    assert [engine.spec.block for engine in built] == [
        graph.block for graph in Bundle.open(root).variant(name, "portable").graphs
    ]


def test_a_second_calibration_takes_the_place_of_the_first(calibrated: Calibrated, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(calibrated[0], root)
    for _ in range(2):
        request = WeightRequest("int8", budget=1.0, lowerings=["cpu"], threads=1, product="block")
        (found,) = calibrate_weights(Bundle.open(root), request, draw_cases(Bundle.open(root), 4, 0))
        assert {matrix.treatment for matrix in found.matrices} == {"int8"}, "any error is allowed"
    bundle = Bundle.open(root)
    bundle.verify_hashes()
    assert sorted(variant.name for variant in bundle.manifest.variants) == sorted(
        variant.name for variant in Bundle.open(calibrated[0]).manifest.variants
    )
    named = {file.path for file in bundle.files()}
    assert {path.relative_to(root).as_posix() for path in (root / "graphs").rglob("*") if path.is_file()} == named


@pytest.mark.parametrize("moment", [pytest.param("write", marks=pytest.mark.slow), "publish"])
def test_killed_half_way_the_bundle_is_what_it_was(
    wide_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(wide_bundle, root)
    manifest = (root / "manifest.json").read_bytes()
    candidate = root / "graphs" / ".candidate-1.block0.onnx"
    candidate.write_bytes(b"of a process that is gone")

    def killed(*_: object) -> Variant:
        raise KeyboardInterrupt

    request = WeightRequest("int8", budget=1.0, lowerings=["cpu"], threads=1, product="block")
    with monkeypatch.context() as patch:
        patch.setattr(VariantWriter, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            calibrate_weights(Bundle.open(root), request, draw_cases(Bundle.open(root), 4, 0))
    assert (root / "manifest.json").read_bytes() == manifest
    Bundle.open(root).verify_hashes()
    assert not list((root / "graphs").glob(".*"))
    calibrate_weights(Bundle.open(root), request, draw_cases(Bundle.open(root), 4, 0))
    Bundle.open(root).verify_hashes()
    named = {file.path for file in Bundle.open(root).files()}
    assert {path.relative_to(root).as_posix() for path in (root / "graphs").rglob("*") if path.is_file()} == named


def test_bad_requests(wide_bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(wide_bundle)
    some = draw_cases(bundle, 4, 0)
    for budget in (0.0, -1.0, 1e308, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=r"--budget .*above 0"):
            calibrate_weights(bundle, WeightRequest("int8", budget=budget), some)
    with pytest.raises(NotFiniteError, match=r"samples with guidance 1e\+09 hold NaN or infinity"):
        calibrate_weights(bundle, WeightRequest("int8"), draw_cases(bundle, 4, 0, guidance=1e9))
    with pytest.raises(UsageError, match="fp8 is for engines"):
        calibrate_weights(bundle, WeightRequest("fp8", lowerings=["cpu"]), some)
    with pytest.raises(ExportError, match="no weight matrix of 16384 values"):
        calibrate_weights(Bundle.open(tiny_bundle), WeightRequest("int8"), draw_cases(Bundle.open(tiny_bundle), 2, 0))
    with pytest.raises(ExportError, match="allow more with --budget"):
        calibrate_weights(bundle, WeightRequest("int4", budget=1e-9, lowerings=["portable"]), some)
    for gone, weights, match in (
        ("cpu-fp32", "int8", "no variant cpu-fp32"),
        ("portable-fp16", "fp8", "no variant portable-fp16"),
    ):
        variants = tuple(variant for variant in bundle.manifest.variants if variant.name != gone)
        without = Bundle(bundle.root, bundle.manifest.model_copy(update={"variants": variants}))
        with pytest.raises(BundleError, match=match):
            calibrate_weights(without, WeightRequest(weights), some)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--weights", "int8", "--budget", "0"], 2, "--budget 0:"),
        (["--weights", "int8", "--images", "0"], 2, "--images 0"),
        (["--weights", "int3"], 2, "found 'int3', expected one of"),
        ([], 2, "missing: one of --weights --plan"),
        (["--weights", "int8", "--plan"], 2, "exclude each other"),
        (["--weights", "int8", "--data", "missing.npz"], 2, "missing.npz"),
        (["--weights", "fp8", "--lowering", "cpu"], 2, "fp8 is for engines"),
    ],
)
def test_bad_command_lines(
    wide_bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, says: str
) -> None:
    assert main(["calibrate", str(wide_bundle), *arguments]) == status
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in said and "Traceback" not in said


def test_bad_data(wide_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arrays, says in (
        ({"x": np.zeros((2, 1, 4, 4))}, "x has shape"),
        ({"y": np.zeros(2)}, "holds ['y']"),
        ({"x": np.full((2, 1, 8, 8), np.nan)}, "finite"),
    ):
        np.savez(tmp_path / "data.npz", **arrays)
        command = ["calibrate", str(wide_bundle), "--weights", "int8", "--data", str(tmp_path / "data.npz")]
        assert main(command) == 2
        assert says in capsys.readouterr().err


def test_command_with_data_writes_a_report_and_json(
    wide_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(wide_bundle, root)
    np.savez(tmp_path / "data.npz", x=drawn(root, "cpu-fp32", cases(root)), condition=np.arange(IMAGES))
    status = main(
        ["calibrate", str(root), "--weights", "int8", "--budget", "0.02", "--lowering", "cpu", "--images", "4", "--json",
         "--data", str(tmp_path / "data.npz"), "--report", str(tmp_path / "report.html"), "--threads", "1"]
    )  # fmt: skip
    assert status == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["variant"]["name"] == "cpu-int8"
    assert result["measured"][-1]["error"]["total"] <= 0.02
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") == 3 and "<svg" in page
    assert 'src="http' not in page and 'href="http' not in page
    assert all(matrix["weight"] in page for matrix in result["matrices"])
    assert "Speed on this machine" in page


def test_report_of_variants_that_are_not_timed(calibrated: Calibrated, tmp_path: Path) -> None:
    root, found = calibrated
    write_report(tmp_path / "report.html", Bundle.open(root), found, None)
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in NAMES)
    assert found[0].request.budget == BUDGET
