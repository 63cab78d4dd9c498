"""Students in C++: the samples of Python, and its refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BundleError
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.decode_plan import BlockPlan, DecodePlan, Student
from tests.cpp_library import CppError, CppSampler
from tests.edited_manifest import edit_manifest
from tests.made_once import MadeOnce
from tests.models import tarflow_config
from tests.runtime.cpp.test_cpp_sampling import CLOSE, compare
from tests.runtime.cpp.test_cpp_strictness import linked, refusal
from tests.students import write_taught

pytestmark = pytest.mark.usefixtures("cpp_folder")

LABELS = np.array([1, 2, 3, 4, 5])


@pytest.mark.parametrize("plan", ["student", "student+2", "student+16"])
def test_the_samples_of_python(students_bundle: Path, plan: str) -> None:
    """Two batch sizes: three images, one and one."""
    found = compare(students_bundle, 5, LABELS, plan=plan, guidance=[0.0, 0.5, 1.0, 2.0, 3.0])
    exact = compare(students_bundle, 5, LABELS, plan="sequential", guidance=[0.0, 0.5, 1.0, 2.0, 3.0])
    if plan == "student+16":  # as many passes as tokens
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)
    else:
        assert np.abs(found - exact).max() > 1e-2


@pytest.mark.parametrize("passes", [0, 1])
def test_a_first_token_that_passes_unchanged_and_labels(made_once: MadeOnce, tmp_path: Path, passes: int) -> None:
    bundle = made_once("students-class-label", lambda folder: write_taught(folder, tarflow_config())) / "bundle"
    tokens = Bundle.open(bundle).autoregressive.decoded_tokens()
    plan = DecodePlan(blocks=(BlockPlan(block=1, segments=(Student(tokens=tokens[1], passes=passes),)),))
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    compare(bundle, 3, np.array([0, 1, 2]), plan=plan, plan_file=tmp_path / "plan.json", guidance=1.0)
    compare(bundle, 3, None, plan="student")


def test_students_of_8_bits_run_with_the_variant_that_has_them(quantised_students_bundle: Path) -> None:
    found = compare(quantised_students_bundle, 4, LABELS[:4], plan="student", variant="cpu-int8", guidance=1.0)
    exact = compare(quantised_students_bundle, 4, LABELS[:4], plan="student", variant="cpu-fp32", guidance=1.0)
    assert 1e-4 < np.abs(found - exact).max() / np.abs(exact).max() < 0.1


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (3.5, "guidance 3.5: the student of flow block 0 was trained for 0 to 3; give a weight in this range"),
        (Guidance(1.5, schedule=(1, 2)), "was trained for one weight in all flow blocks"),
        (Guidance(1.5, top_only=True), "was trained for one weight in all flow blocks"),
    ],
)
def test_guidance_that_it_was_not_trained_for(students_bundle: Path, guidance: Any, message: str) -> None:
    with CppSampler(students_bundle, (1, 8, 8), threads=1, plan="student") as sampler:
        noise = np.zeros((1, 1, 8, 8), np.float32)
        with pytest.raises(CppError, match=message):
            sampler.generate(noise, np.array([1]), guidance=guidance)
        sampler.generate(noise, np.array([1]), guidance=1.5)
    with CppSampler(students_bundle, (1, 8, 8), threads=1) as sampler:
        sampler.generate(noise, np.array([1]), guidance=guidance)


def test_plans_that_do_not_fit(tiny_bundle: Path, students_bundle: Path, tmp_path: Path) -> None:
    for plan in ("student", "student+3"):
        with pytest.raises(CppError, match="this bundle has no students; `starflow export --student` adds them"):
            CppSampler(tiny_bundle, (1, 8, 8), plan=plan)
    with pytest.raises(CppError, match="give at most 100000 passes"):
        CppSampler(students_bundle, (1, 8, 8), plan="student+100001")
    for plan in ("student+", "student+x", "students"):  # files that are not there
        with pytest.raises(CppError, match="name auto, sequential, student or a file"):
            CppSampler(students_bundle, (1, 8, 8), plan=plan)
    segment = {"kind": "student", "tokens": 16}
    for bundle, segments, message in (
        (tiny_bundle, [segment], "flow block 1 has no student in this bundle"),
        (students_bundle, [segment | {"tokens": 15}, {"kind": "steps", "tokens": 1}], "a student and further segments"),
        (students_bundle, [segment | {"tokens": 15}], "have 15 tokens, the block has 16"),
    ):
        path = tmp_path / "plan.json"
        path.write_text(json.dumps({"blocks": [{"block": 1, "segments": segments}]}))
        with pytest.raises(CppError, match=message):
            CppSampler(bundle, (1, 8, 8), plan=str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "0" * 64}, "was distilled from another checkpoint"),
        ({"block": 0}, "not in order"),
        ({"block": 5}, "decodes no tokens"),
        ({"guidance": [3, 1]}, "does not begin with the lower weight"),
    ],
)
def test_students_that_do_not_fit(students_bundle: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    root = linked(students_bundle, tmp_path / "bundle")

    def change(content: dict[str, Any]) -> None:
        for place in (content, *content["batches"]):
            place["students"][1] |= changes

    edit_manifest(root, change)
    error = refusal(root)
    assert error and message in str(error)
    with pytest.raises(BundleError):
        Bundle.open(root)


def test_a_stored_plan_has_no_students(students_bundle: Path, tmp_path: Path) -> None:
    """It would run unasked."""
    root = linked(students_bundle, tmp_path / "bundle")
    plan: dict[str, Any] = {"backend": "onnxruntime cpu", "variant": "cpu-fp32", "budget": 1, "error": 1, "images": 1}
    plan |= {"guidance": 1, "passes": 1, "milliseconds": 1, "predicted_milliseconds": 1, "sequential_milliseconds": 1}
    plan |= {"costs": [], "blocks": [{"block": 1, "segments": [{"kind": "steps", "tokens": 16}]}]}
    edit_manifest(root, lambda content: content.update(plans=[plan]))
    assert refusal(root) is None and Bundle.open(root).manifest.plans
    plan["blocks"][0]["segments"] = [{"kind": "student", "tokens": 16}]
    edit_manifest(root, lambda content: content.update(plans=[plan]))
    error = refusal(root)
    assert error and "a plan of the bundle's own may not run" in str(error)
    with pytest.raises(BundleError, match="has no student in this bundle"):
        Bundle.open(root)


def test_alone_it_runs_no_step_graph(students_bundle: Path, tmp_path: Path) -> None:
    """The step graphs are gone, and the manifest does not mind: nothing opens them."""
    root = linked(students_bundle, tmp_path / "bundle")
    with CppSampler(root, (1, 8, 8), threads=1, plan="student") as sampler:
        for path in (root / "graphs").glob("block*.onnx"):
            path.unlink()
        noise = np.random.default_rng(0).standard_normal((1, 1, 8, 8), np.float32)
        found = sampler.generate(noise, np.array([3]), guidance=1.0)
    expected = compare(students_bundle, 1, np.array([3]), plan="student", guidance=1.0)
    assert np.isfinite(found).all() and found.shape == expected.shape and np.abs(found - expected).max() > CLOSE
