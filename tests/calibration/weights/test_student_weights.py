"""Students in 8 bits: what they lose, where they run, and that they are left out where they do not pay."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from starflow.calibration.cases import draw_cases
from starflow.calibration.weights import student_weights
from starflow.calibration.weights.calibration import calibrate_weights
from starflow.calibration.weights.command import student_in_words
from starflow.calibration.weights.results import StudentResult, WeightCalibration, WeightRequest
from starflow.export.bundle_folder import file_spec
from starflow.runtime import Sampler
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_spec import NetworkSpec
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import BundleError
from starflow.runtime.traces.autoregressive import RecordedTrace, sample_trace
from tests.edited_manifest import edit_manifest

GUIDANCE = 1.0


def trace_of(bundle: Bundle) -> RecordedTrace:
    """The samples that the calibration drew."""
    variant = bundle.variant("cpu-fp32", "cpu")
    with OnnxRuntimeBackend(bundle, variant, threads=1) as backend:
        return sample_trace(bundle, variant, backend, draw_cases(bundle, 6, 3).calibrate)


def run(bundle: Bundle, network: NetworkSpec, feed: dict[str, NDArray]) -> NDArray:
    session = onnxruntime.InferenceSession(bundle.path(network.file), providers=["CPUExecutionProvider"])
    found: NDArray = session.run(None, feed)[0]
    return found


def calibrated(root: Path, budget: float) -> WeightCalibration:
    bundle = Bundle.open(root)
    request = WeightRequest("int8", budget=budget, threads=1, product="row")
    (found,) = calibrate_weights(bundle, request, draw_cases(bundle, 6, 3))
    return found


def student_files(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*student*") if "int8" in path.name}


@pytest.mark.parametrize("block", [0, 1])
def test_the_error_is_that_of_its_tokens(quantised_students_bundle: Path, block: int) -> None:
    bundle = Bundle.open(quantised_students_bundle)
    variant, student = bundle.variant("cpu-int8", "cpu"), bundle.autoregressive.students[block]
    made = variant.students[block]
    assert (made.block, student.block) == (block, block)
    above = below = 0.0
    for inputs in trace_of(bundle).inputs[block]:
        feed = {"noise": inputs.noise, "guidance": inputs.scalars["guidance"]}
        if inputs.condition is not None:
            feed["condition"] = inputs.condition[:3]
        exact, found = run(bundle, student.network, feed), run(bundle, made.network, feed)
        above, below = above + np.square(found - exact).sum(), below + np.square(exact).sum()
    assert 0 < made.error < 0.05
    assert (above / below) ** 0.5 == pytest.approx(made.error, rel=1e-3)


def test_its_products_are_of_8_bits_and_its_weights_are_smaller(quantised_students_bundle: Path) -> None:
    bundle = Bundle.open(quantised_students_bundle)
    for place in bundle.places():
        for made in place.variant("cpu-int8", "cpu").students:
            model = onnx.load(place.path(made.network.file), load_external_data=False)
            products = sum(node.op_type == "MatMulInteger" for node in model.graph.node)
            changed = [kind for kind in made.matrices.values() if kind != "kept"]
            assert products == len(changed) >= 6
            exact = next(each for each in place.autoregressive.students if each.block == made.block)
            assert made.network.weight_bytes < 0.5 * exact.network.weight_bytes
            assert made.time > 0


def test_the_variant_samples_with_them(quantised_students_bundle: Path) -> None:
    """Of one image and of three, whose graphs differ: an image does not depend on its batch."""
    bundle, labels = Bundle.open(quantised_students_bundle), np.arange(3)
    with Sampler.open(bundle, variant="cpu-int8", plan="student", threads=1) as sampler:
        noise = sampler.noise(3, 1)
        together = sampler.generate(noise, labels, guidance=GUIDANCE)
        alone = np.concatenate(
            [sampler.generate(noise[i : i + 1], labels[i : i + 1], guidance=GUIDANCE) for i in range(3)]
        )
    with Sampler.open(bundle, variant="cpu-fp32", plan="student", threads=1) as sampler:
        exact = sampler.generate(noise, labels, guidance=GUIDANCE)
    np.testing.assert_allclose(alone, together, atol=1e-2)
    difference = np.linalg.norm(together - exact) / np.linalg.norm(exact)
    assert 1e-4 < difference < 0.1


def test_where_it_does_not_pay_it_stays_in_float32(
    quantised_students_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variant gives way to one without students, and their files go."""
    root = tmp_path / "bundle"
    shutil.copytree(quantised_students_bundle, root)
    assert len(student_files(root)) == 2 * 3
    monkeypatch.setattr(student_weights, "PAYS", 0.0)
    found = calibrated(root, 0.05)
    bundle = Bundle.open(root)
    bundle.verify_hashes()
    assert not any(place.variant("cpu-int8", "cpu").students for place in bundle.places())
    assert not student_files(root)
    assert [each.block for each in found.students] == [0, 1] and all(
        set(each.times) == {3, 1} for each in found.students
    )


def test_a_budget_that_no_matrix_keeps(
    quantised_students_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights may be quantised where the flow's are: the budgets are of different things."""
    root = tmp_path / "bundle"
    shutil.copytree(quantised_students_bundle, root)
    monkeypatch.setattr(student_weights, "choose_within", lambda *_: [])
    found = calibrated(root, 0.05)
    assert [each.error for each in found.students] == [None, None]
    assert "stays in float32" in student_in_words(found.students[0])
    assert not Bundle.open(root).variant("cpu-int8", "cpu").students


@pytest.mark.parametrize("damaged", [False, True])
def test_verify_compares_them_with_pytorch(
    quantised_students_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, damaged: bool
) -> None:
    """Codes that count from another zero are found."""
    root, made = tmp_path / "bundle", quantised_students_bundle.parent
    shutil.copytree(quantised_students_bundle, root)
    if damaged:
        network = Bundle.open(root).variant("cpu-int8", "cpu").students[1].network
        path = root / network.file.path
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.name == "const.zero_point":
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(120, np.uint8), tensor.name))
        onnx.save(model, path)
        new = file_spec(path, root).model_dump()
        edit_manifest(root, lambda content: content["variants"][1]["students"][1]["network"].update(file=new))
    command = ["verify", str(root), "--checkpoint", str(made / "checkpoint"), "--images", "3"]
    for block in (0, 1):
        command += ["--student", str(made / f"student{block}")]
    assert main(command) == int(damaged)
    printed = capsys.readouterr().out
    assert "student of flow block 0, cpu-int8" in printed and "student of flow block 1, cpu-int8" in printed


def test_inspect_tells_where_they_run(quantised_students_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(quantised_students_bundle)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for block in (0, 1):
        for batch in (1, 3):
            assert f"student of flow block {block} at batch {batch}: 8 bits" in printed


def test_in_words() -> None:
    result = StudentResult(3, {"a": "int8", "b": "int8", "c": "kept"}, 0.0123, {8: 0.7, 1: 1.2})
    assert student_in_words(result) == (
        "student of flow block 3: 2 int8, 1 kept; error of its tokens 1.23 %; time over float32's 0.70 at batch 8, "
        "1.20 at batch 1; stays in float32 at batch 1, where 8 bits do not pay"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda students: students.reverse(), "expected some of"),
        (lambda students: students[0].update(block=5), "expected some of"),
        (lambda students: students[0]["network"].update(inputs=[]), "takes"),
    ],
)
def test_students_that_do_not_fit(
    quantised_students_bundle: Path, tmp_path: Path, change: object, message: str
) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(quantised_students_bundle, root)
    assert callable(change)
    edit_manifest(root, lambda content: change(content["variants"][1]["students"]))
    with pytest.raises(BundleError, match=message):
        Bundle.open(root)
