"""Weights rounded without samples: what they do to samples, what the bundle says of them, wrong use."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from starflow.calibration.cases import draw_cases
from starflow.calibration.weights.plain_rounding import round_plainly
from starflow.calibration.weights.results import PLAIN, WeightCalibration
from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import BundleError, UsageError
from starflow.runtime.sampler import Sampler
from tests.calibration.conftest import IMAGES, SEED


@pytest.fixture
def bundle(wide_bundle: Path, tmp_path: Path) -> Bundle:
    shutil.copytree(wide_bundle, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


def sample_error(root: Path, variant: str) -> float:
    case = draw_cases(Bundle.open(root), IMAGES, SEED).check
    found = []
    for name in (variant, "cpu-fp32"):
        with Sampler.open(root, backend="onnxruntime", variant=name, threads=1) as sampler:
            found.append(sampler.generate(case.noise, case.condition, guidance=case.guidance))
    return float(np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[1]))


def test_samples_are_as_far_off_as_the_calibration_measured_for_plain_rounding(
    bundle: Bundle, calibrated: tuple[Path, list[WeightCalibration]]
) -> None:
    (variant,) = round_plainly(bundle, "int8", ["cpu"])
    changed = Bundle.open(bundle.root)
    changed.verify_hashes()
    assert changed.manifest.variants == (*bundle.manifest.variants, variant)
    expected = calibrated[1][0].measurement(PLAIN).error.total
    assert sample_error(bundle.root, "cpu-int8") == pytest.approx(expected, rel=1e-3)


def test_the_manifest_states_no_error(bundle: Bundle) -> None:
    for variant in round_plainly(bundle, "int8"):
        record = variant.quantization
        assert record is not None and record.error is None and record.budget is None and record.images == 0
        assert "int8" in record.matrices.values()
        assert sum(graph.weight_bytes for graph in variant.graphs) < variant.weights.bytes


def test_half_precision_will_do_as_a_source(tmp_path: Path, wide_bundle: Path, bundle: Bundle) -> None:
    options = ExportOptions(precisions=("fp16",), batch=4)
    export_checkpoint(wide_bundle.parent / "checkpoint", tmp_path / "half", options)
    (variant,) = round_plainly(Bundle.open(tmp_path / "half"), "int8", ["cpu"])
    assert variant.quantization is not None and variant.quantization.source == "cpu-fp16"
    (other,) = round_plainly(bundle, "int8", ["cpu"])
    assert other.quantization is not None and other.quantization.source == "cpu-fp32"
    assert variant.quantization.matrices == other.quantization.matrices
    for graph in variant.graphs:
        nodes = onnx.load(tmp_path / "half" / graph.file.path, load_external_data=False).graph.node
        weights = {name for node in nodes if node.op_type == "Cast" for name in node.input}
        assert weights.isdisjoint(n for n, kind in variant.quantization.matrices.items() if kind == "int8")
    noise = np.random.default_rng(0).standard_normal((4, *bundle.manifest.model.data_shape), np.float32)
    made = []
    for root in (tmp_path / "half", bundle.root):
        with Sampler.open(root, variant="cpu-int8", threads=1) as sampler:
            made.append(sampler.generate(noise, [0, 1, 2, 0], guidance=1.0))
    assert np.linalg.norm(made[0] - made[1]) < 0.02 * np.linalg.norm(made[1])


def test_wrong_use(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="fp8 is for engines; name portable"):
        round_plainly(bundle, "fp8", ["cpu"])
    names = {"variants": tuple(v for v in bundle.manifest.variants if v.name == "cpu-fp32")}
    alone = Bundle(bundle.root, bundle.autoregressive.model_copy(update=names))
    with pytest.raises(BundleError, match="has no variant portable-fp16; it has cpu-fp32: export it again"):
        round_plainly(alone, "int8", ["portable"])
    assert main(["calibrate", str(bundle.root), "--weights", "int8", "--plain", "--budget", "0.1"]) == 2
    assert "--plain rounds weights without samples; leave out --budget" in capsys.readouterr().err
    assert main(["calibrate", str(bundle.root), "--plan", "--plain"]) == 2
    assert "leave out --plan" in capsys.readouterr().err
