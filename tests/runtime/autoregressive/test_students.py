"""Students: through ONNX Runtime as in PyTorch, exact after enough passes, and refused where they were not trained."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from starflow.runtime import Sampler
from starflow.runtime.autoregressive.tokens import from_block, patchify, to_block, unpatchify
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_spec import StudentFigures as Figures
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import BundleError, NotFiniteError, UsageError
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.decode_plan import BlockPlan, DecodePlan, Steps, Student
from starflow.training.config import CheckpointConfig
from starflow.training.students.folder import StudentFigures, read_student
from tests.edited_manifest import edit_manifest
from tests.made_once import MadeOnce
from tests.models import (
    class_config,
    features_config,
    patches_config,
    tarflow_config,
    unconditional_config,
)
from tests.students import FIGURES, write_student, write_taught

GUIDANCE = 1.5
KINDS: dict[str, Callable[[], CheckpointConfig]] = {
    "class-token": class_config,
    "class-label": tarflow_config,
    "features": features_config,
    "none": unconditional_config,
    "patches": patches_config,
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, made_once: MadeOnce) -> Path:
    return made_once(f"students-{request.param}", lambda folder: write_taught(folder, KINDS[request.param]()))


@pytest.fixture
def taught(students_folder: Path) -> Path:
    return students_folder


def conditions(bundle: Bundle, count: int) -> tuple[NDArray | None, NDArray | None]:
    """A condition of each image, and the null condition."""
    spec = bundle.manifest.conditioning
    if spec.kind == "features":
        generator = np.random.default_rng(3)
        return generator.standard_normal((count, spec.tokens, spec.width), np.float32), np.zeros(
            (spec.tokens, spec.width), np.float32
        )
    return (np.arange(count) % spec.num_classes if spec.num_classes else None), None


def by_pytorch(folder: Path, bundle: Bundle, noise: NDArray, condition: NDArray | None, weight: float) -> NDArray:
    """Every flow block by its student in PyTorch, [N, C, H, W]."""
    manifest = bundle.autoregressive
    model, given = manifest.model, manifest.conditioning
    tokens = patchify(noise, model) if model.noise_layout == "image" else noise
    found: Any = None if condition is None else torch.from_numpy(condition)
    if given.kind == "class-token":
        found = torch.nn.functional.one_hot(found, given.width)[:, None].float()
    for block in reversed(manifest.blocks):
        student = read_student(folder / f"student{block.index}")
        with torch.inference_mode():
            z = torch.from_numpy(np.ascontiguousarray(to_block(tokens, model, block)))
            made = student(z, found, torch.full((len(noise),), weight)).numpy()
        assert np.abs(made - z.numpy()).max() > 0.1
        tokens = from_block(made, model, block)
    return unpatchify(np.ascontiguousarray(tokens), model)


def test_through_onnxruntime_as_in_pytorch(folder: Path) -> None:
    """Five images run in several batches; no step graph is opened."""
    bundle = Bundle.open(folder / "bundle")
    condition, null = conditions(bundle, 5)
    weight = GUIDANCE if bundle.manifest.guided else 0.0
    with Sampler.open(bundle, plan="student", threads=1) as sampler:
        sampler.load()
        noise = sampler.noise(5, seed=4)
        found = sampler.generate(noise, condition, null, guidance=weight)
        assert not sampler.backend._blocks  # type: ignore[attr-defined]
    expected = by_pytorch(folder, bundle, noise, condition, weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    other = by_pytorch(folder, bundle, noise, condition, weight + 1)
    assert np.abs(other - expected).max() > 1e-3  # the weight has a say


def test_without_a_label_it_gets_the_null_class(made_once: MadeOnce) -> None:
    folder = made_once("students-class-label", lambda folder: write_taught(folder, tarflow_config()))
    bundle = Bundle.open(folder / "bundle")
    with Sampler.open(bundle, plan="student", threads=1) as sampler:
        noise = sampler.noise(3, seed=4)
        found = sampler.generate(noise)
    expected = by_pytorch(folder, bundle, noise, np.full(3, -1), 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_as_many_passes_as_tokens_are_exact(folder: Path) -> None:
    """After k passes the first k tokens are exact, whatever the student guessed: here, random tokens."""
    bundle = Bundle.open(folder / "bundle")
    condition, null = conditions(bundle, 3)
    weight = GUIDANCE if bundle.manifest.guided else 0.0
    longest = max(bundle.autoregressive.decoded_tokens().values())
    passes: dict[int, int] = {}
    with Sampler.open(bundle, plan=f"student+{longest}", threads=1) as sampler:
        noise = sampler.noise(3, seed=5)
        found = sampler.generate(noise, condition, null, guidance=weight, on_passes=passes.__setitem__)
        assert set(passes.values()) == {longest + 1}
        sampler.plan = "student+1"
        near = sampler.generate(noise, condition, null, guidance=weight)
        sampler.plan = "sequential"
        exact = sampler.generate(noise, condition, null, guidance=weight)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)
    assert np.abs(near - exact).max() > 1e-2


def test_the_first_pass_starts_from_the_students_tokens(folder: Path) -> None:
    """By an explicit Jacobi pass: each token of the result is the flow's, given the student's tokens before it."""
    bundle = Bundle.open(folder / "bundle").at_batch(3)
    condition, null = conditions(bundle, 3)
    weight = GUIDANCE if bundle.manifest.guided else 0.0
    deep = bundle.autoregressive.blocks[-1]
    tokens = bundle.autoregressive.decoded_tokens()[deep.index]

    def block_of(passes: int, sampler: Sampler) -> NDArray:
        plan = BlockPlan(block=deep.index, segments=(Student(tokens=tokens, passes=passes),))
        sampler.plan = DecodePlan(blocks=(plan,))
        made: dict[int, NDArray] = {}
        sampler.generate(noise, condition, null, guidance=weight, on_block=made.__setitem__)
        return to_block(patchify(made[deep.index], sampler.manifest.model), sampler.manifest.model, deep)  # type: ignore[arg-type]

    with Sampler.open(bundle, threads=1) as sampler:
        noise = sampler.noise(3, seed=6)
        alone, once = block_of(0, sampler), block_of(1, sampler)
        runner = sampler.backend.block_runner(deep.index)
        start = np.zeros_like(alone[:, : 1 - deep.first_token])
        expected = runner.run_on(deep.prefix, np.concatenate([start, alone[:, :-1]], axis=1)).copy()
    np.testing.assert_allclose(once[:, deep.first_token :], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(once[:, : deep.first_token], alone[:, : deep.first_token])
    assert np.abs(once - alone).max() > 0.1


def test_the_default_stays_exact(taught: Path) -> None:
    with Sampler.open(taught / "bundle", threads=1) as sampler:
        assert sampler.decoding == "sequential"
        assert not sampler.plan.blocks  # type: ignore[union-attr]
        sampler.plan = "student"
        assert sampler.decoding == "by plan, flow block 1 by its student, flow block 0 by its student"


def test_one_student_among_other_blocks(taught: Path) -> None:
    """The block below gets the student's tokens, and is decoded as ever."""
    bundle = Bundle.open(taught / "bundle").at_batch(3)
    only = tuple(student for student in bundle.autoregressive.students if student.block == 1)
    manifest = bundle.manifest.model_copy(update={"students": only})
    made: dict[int, NDArray] = {}
    with Sampler.open(bundle.with_manifest(manifest), plan="student", threads=1) as sampler:
        found = sampler.generate(sampler.noise(3), [1, 2, 3], guidance=GUIDANCE, on_block=made.__setitem__)
        assert sampler.decoding == "by plan, flow block 1 by its student"
        np.testing.assert_array_equal(found, made[0])
        sampler.plan = DecodePlan(
            blocks=(*sampler.plan.blocks, BlockPlan(block=0, segments=(Steps(tokens=16),)))  # type: ignore[union-attr]
        )
        np.testing.assert_array_equal(sampler.generate(sampler.noise(3), [1, 2, 3], guidance=GUIDANCE), found)


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (3.5, "guidance 3.5: the student of flow block 0 was trained for 0 to 3; give a weight in this range"),
        (Guidance(1.5, schedule=(1, 2)), "was trained for one weight in all flow blocks"),
        (Guidance(1.5, schedule=(2, 1)), "was trained for one weight in all flow blocks"),
        (Guidance(1.5, top_only=True), "was trained for one weight in all flow blocks"),
        ([0.0, 9.0], "guidance 9: the student"),
    ],
)
def test_guidance_that_it_was_not_trained_for(taught: Path, guidance: Any, message: str) -> None:
    with Sampler.open(taught / "bundle", plan="student", threads=1) as sampler:
        with pytest.raises(UsageError, match=message):
            sampler.generate(sampler.noise(2), [1, 2], guidance=guidance)
        with pytest.raises(UsageError, match=message):
            sampler.check(2, [1, 2], guidance=guidance)
        sampler.plan = "sequential"
        sampler.generate(sampler.noise(2), [1, 2], guidance=guidance)


def test_a_weight_below_its_range(taught: Path) -> None:
    """Of one image among others, too."""
    bundle = Bundle.open(taught / "bundle").at_batch(3)
    students = tuple(each.model_copy(update={"guidance": (1.0, 3.0)}) for each in bundle.autoregressive.students)
    changed = bundle.with_manifest(bundle.manifest.model_copy(update={"students": students}))
    with Sampler.open(changed, plan="student", threads=1) as sampler:
        sampler.generate(sampler.noise(2), [1, 2], guidance=[1.0, 3.0])
        with pytest.raises(UsageError, match=r"guidance 0\.5: the student of flow block 0 was trained for 1 to 3"):
            sampler.generate(sampler.noise(2), [1, 2], guidance=[1.0, 0.5])


def test_other_guidance_of_the_blocks_above_changes_what_a_student_is_given(taught: Path) -> None:
    plan = DecodePlan(blocks=(BlockPlan(block=0, segments=(Student(tokens=16),)),))
    with (
        Sampler.open(taught / "bundle", plan=plan, threads=1) as sampler,
        pytest.raises(UsageError, match="the student of flow block 0 was trained for one weight in all flow blocks"),
    ):
        sampler.generate(sampler.noise(1), [1], guidance=Guidance(1.5, schedule=(1, 2)))


@pytest.mark.parametrize("guidance", [Guidance(1, annealed=True), Guidance(1, scale=False), Guidance(1, shift=False)])
def test_rules_that_it_was_not_trained_for(made_once: MadeOnce, guidance: Guidance) -> None:
    folder = made_once("students-class-label", lambda folder: write_taught(folder, tarflow_config()))
    with Sampler.open(folder / "bundle", plan="student", threads=1) as sampler:
        with pytest.raises(UsageError, match="was trained for one weight in all flow blocks"):
            sampler.generate(sampler.noise(1), [1], guidance=guidance)
        sampler.generate(sampler.noise(1), [1], guidance=1.0)


def test_guiding_the_deep_block_alone_is_what_its_student_learned(taught: Path) -> None:
    plan = DecodePlan(blocks=(BlockPlan(block=1, segments=(Student(tokens=16),)),))
    with Sampler.open(taught / "bundle", plan=plan, threads=1) as sampler:
        sampler.generate(sampler.noise(1), [1], guidance=Guidance(1.5, top_only=True))
        sampler.generate(sampler.noise(1), [1], guidance=Guidance(1.5, schedule=(0, 1)))


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ((Student(tokens=15),), "have 15 tokens, the block has 16"),
        ((Student(tokens=15), Steps(tokens=1)), "has a student and further segments"),
        ((Student(tokens=16, passes=1),), "has a run of 16 tokens; this bundle was exported for 1 to 8"),
    ],
)
def test_plans_that_do_not_fit(taught: Path, segments: tuple[Any, ...], message: str) -> None:
    bundle = Bundle.open(taught / "bundle").at_batch(1)
    bundle = bundle.with_manifest(bundle.manifest.model_copy(update={"max_chunk": 8}))
    with pytest.raises(UsageError, match=message):
        Sampler.open(bundle, plan=DecodePlan(blocks=(BlockPlan(block=1, segments=segments),)))


def test_a_plan_file(taught: Path, tmp_path: Path) -> None:
    plan = {"blocks": [{"block": 1, "segments": [{"kind": "student", "tokens": 16}]}]}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    with Sampler.open(taught / "bundle", plan=path, threads=1) as sampler:
        assert sampler.decoding == "by plan, flow block 1 by its student"
    plan["blocks"][0]["segments"][0]["pases"] = 2  # type: ignore[index]
    path.write_text(json.dumps(plan))
    with pytest.raises(UsageError, match="did you mean passes"):
        Sampler.open(taught / "bundle", plan=path)


def test_a_bundle_without_students_says_so(tiny_bundle: Path, capsys: pytest.CaptureFixture) -> None:
    for plan in ("student", "student+2"):
        assert main(["sample", str(tiny_bundle), "--labels", "1", "--plan", plan]) == 2
        error = capsys.readouterr().err
        assert f"plan {plan}: this bundle has no students; `starflow export --student` adds them" in error
        assert error.count("\n") == 1
    plan_of_one = DecodePlan(blocks=(BlockPlan(block=1, segments=(Student(tokens=16),)),))
    with pytest.raises(UsageError, match="flow block 1 has no student in this bundle"):
        Sampler.open(tiny_bundle, plan=plan_of_one)


def test_the_gap_is_printed(taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = ["sample", str(taught / "bundle"), "--labels", "1", "--threads", "1", "--out", str(tmp_path / "x.png")]
    assert main([*given, "--plan", "student"]) == 0
    *_, heading, deep, shallow = capsys.readouterr().out.splitlines()
    assert heading == "distance of the students from the exact sampler, as measured:"
    gap = "pair error 0.31, Frechet distance 2.5 (two sets of the teacher's: 0.5), diversity 0.9"
    assert deep.startswith(f"  flow block 1: {gap}") and shallow.startswith(f"  flow block 0: {gap}")
    assert main([*given, "--plan", "student", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["students"]["1"] == FIGURES.model_dump(mode="json")
    assert main(given) == 0
    assert "student" not in capsys.readouterr().out


def test_a_student_that_fails_is_told(taught: Path) -> None:
    bundle = Bundle.open(taught / "bundle")
    with Sampler.open(bundle, plan="student", threads=1) as sampler:
        noise = sampler.noise(1) * np.float32(1e38)
        with pytest.raises(NotFiniteError, match="flow block 1 produced NaN or infinity"):
            sampler.generate(noise, [1])
        sampler.generate(sampler.noise(1), [1])


def test_students_of_other_checkpoints_and_twice_the_same(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checkpoint = taught / "checkpoint"
    write_student(tmp_path / "foreign", checkpoint, 1, teacher="0" * 64)
    write_student(tmp_path / "again", checkpoint, 1, figures=None)
    cases = [
        (
            ["--student", tmp_path / "foreign"],
            "was distilled from another checkpoint, sha256 0000000000000000; this one has",
        ),
        (["--student", taught / "student1", "--student", tmp_path / "again"], "is of flow block 1, and so is"),
        (["--student", tmp_path / "none"], "does not exist; a student is a folder that `starflow distill` writes"),
        (["--student", taught / "student1", "--shape", "8x12"], "works at 8x8 only; leave out it or --shape 8x12"),
    ]
    for arguments, message in cases:
        given = ["export", str(checkpoint), "-o", str(tmp_path / "b"), *map(str, arguments)]
        assert main(given) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "b").exists()


def test_what_the_manifest_says(taught: Path) -> None:
    manifest = Bundle.open(taught / "bundle").autoregressive
    assert manifest.schema_version == 3
    for block, student in enumerate(manifest.students):
        assert student.block == block
        assert student.teacher == manifest.provenance.checkpoint_sha256
        assert list(student.guidance) == [0, 3]
        assert student.figures is not None
        assert student.figures.model_dump() == FIGURES.model_dump()
    assert set(StudentFigures.model_fields) == set(Figures.model_fields)  # a bundle has all that is measured
    files = {file.path for file in manifest.files()}
    assert "graphs/student1.fp32.batch1.onnx" in files
    assert "graphs/weights/student0.safetensors" in files
    assert manifest.at_batch(1).students[0].network.inputs[0].shape == (1, 16, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "0" * 64}, "that of flow block 1 was distilled from another checkpoint"),
        ({"block": 0}, r"found flow blocks \[0, 0\]"),
        ({"block": 5}, r"found flow blocks \[0, 5\]"),
        ({"guidance": [3, 1]}, "expected the lower weight first"),
        ({"guidance": [-1, 1]}, "expected 0 or more"),
        ({"figures": {"frechet": 1}}, "is missing"),
    ],
)
def test_manifests_that_do_not_fit(taught: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    copytree(taught / "bundle", tmp_path / "b")
    edit_manifest(tmp_path / "b", lambda content: content["students"][1].update(changes))
    with pytest.raises(BundleError, match=message):
        Bundle.open(tmp_path / "b")


def test_figures_name_the_students_that_were_measured_together() -> None:
    figures = Figures(**FIGURES.model_dump())
    for beside, said in (
        ((), "guidance 1.5"),
        ((1,), "guidance 1.5, beside the student of flow block 1"),
        ((1, 3), "guidance 1.5, beside the students of flow blocks 1, 3"),
    ):
        assert str(figures.model_copy(update={"beside": beside})).endswith(said)
