"""Distilling a tiny checkpoint: pairs against PyTorch's own sampler, drawing that goes on, and the command."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from starflow.calibration.students.distillation import ConditionFiles, prepare
from starflow.runtime.command_line import main
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.decode_plan import DecodePlan
from starflow.runtime.sampler import Sampler
from starflow.training.autoregressive.flow_block import FlowBlock
from starflow.training.checkpoint import load_autoregressive, open_checkpoint
from starflow.training.config import CheckpointConfig
from starflow.training.recipe import StudentRecipe
from starflow.training.students.folder import read_figures, read_student
from starflow.training.students.pairs import Pairs, load_pairs, shard_path
from tests.models import (
    class_config,
    features_config,
    patches_config,
    tarflow_config,
    velocity_config,
    write_checkpoint,
)
from tests.models import write_velocity as write_continuous

QUICK = [
    *("--pairs", "24", "--steps", "4", "--set", "training.batch_size=4", "--set", "training.evaluate_every=2"),
    *("--set", "training.sample_every=4", "--set", "objective.density_from=2"),
]


def pairs_of(checkpoint: Path, folder: Path, files: ConditionFiles | None = None, **student: object) -> Pairs:
    recipe = StudentRecipe.model_validate(
        {"student": {"pairs": 24, "guidance": (0, 2)} | student, "training": {"steps": 1, "batch_size": 4}}
    )
    prepare(checkpoint, recipe, folder, files or ConditionFiles())
    return load_pairs(folder / "pairs")


@pytest.mark.parametrize("index", [0, -1])
@pytest.mark.parametrize(
    "config", [class_config(), patches_config(), tarflow_config()], ids=["class", "patches", "tarflow"]
)
def test_pairs_are_what_pytorch_samples(tmp_path: Path, config: CheckpointConfig, index: int) -> None:
    write_checkpoint(tmp_path / "checkpoint", config)
    pairs = pairs_of(tmp_path / "checkpoint", tmp_path / "run", block=None if index < 0 else index)
    flow = load_autoregressive(tmp_path / "checkpoint")[1]
    assert isinstance(pairs.condition, torch.Tensor) and pairs.guidance is not None
    assert pairs.guidance.unique().numel() == 24 and pairs.guidance.min() >= 0 and pairs.guidance.max() <= 2
    null = flow.encode_labels(torch.tensor([flow.num_classes]))
    for image in range(0, 24, 7):
        noise, tokens = pairs.tensor[image]
        label = flow.encode_labels(pairs.condition[image : image + 1])
        weight = float(pairs.guidance[image])
        grid = flow.block_configs[index].grid(flow.config.img_size, flow.config.img_size)
        block = flow.blocks[index]
        assert isinstance(block, FlowBlock)
        made = flow._sample_block(
            block,
            noise[None],
            grid,
            label,
            null,
            Guidance(weight),
            1.0,
            None,
            None,
        )
        assert torch.allclose(made[0], tokens, atol=1e-4)


def test_drawing_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", class_config())
    whole = pairs_of(tmp_path / "checkpoint", tmp_path / "run", pairs=300)
    kept, lost = (shard_path(tmp_path / "run" / "pairs", number) for number in range(2))
    before = kept.stat().st_mtime_ns
    lost.unlink()
    again = pairs_of(tmp_path / "checkpoint", tmp_path / "run", pairs=300)
    assert kept.stat().st_mtime_ns == before
    assert torch.equal(whole.tensor, again.tensor)


def test_features_are_drawn_in_turn_and_may_not_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "checkpoint", features_config())
    for seed, name in enumerate(("some", "others")):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(seed).standard_normal((40, 3, 6)).astype(np.float32))
    np.save(tmp_path / "null.npy", np.zeros((3, 6), np.float32))
    command = ["distill", str(tmp_path / "checkpoint"), "-o", str(tmp_path / "run"), *QUICK]
    assert main(command) == 2
    assert "--condition FILE.npy" in capsys.readouterr().err
    # More captions than samples, of which variety within a caption could not be told if all had their turn.
    given = [
        "--condition",
        str(tmp_path / "some.npy"),
        "--null-condition",
        str(tmp_path / "null.npy"),
        "--images",
        "16",
    ]
    assert main([*command, *given]) == 0
    capsys.readouterr()
    given[1] = str(tmp_path / "others.npy")
    assert main([*command, *given]) == 2
    assert "holds pairs of other conditions" in capsys.readouterr().err


def test_captions_are_read_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "checkpoint", features_config())
    command = ["distill", str(tmp_path / "checkpoint"), "-o", str(tmp_path / "run"), *QUICK]
    assert main([*command, "--captions-file", str(tmp_path / "none.txt")]) == 2
    assert "none.txt" in capsys.readouterr().err
    assert not (tmp_path / "run" / "teacher.bundle").exists()


def test_the_command_ends_like_one_that_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "checkpoint", class_config())
    students = []
    for name, stops in (("whole", ["4"]), ("parts", ["2", "4"])):
        for stop in stops:
            command = ["distill", str(tmp_path / "checkpoint"), "-o", str(tmp_path / name), *QUICK, "--json"]
            assert main([*command, "--max-steps", stop]) == 0
            outcome = json.loads(capsys.readouterr().out)
        assert outcome["step"] == 4 and os.path.isdir(outcome["student"])
        students.append(read_student(tmp_path / name / "checkpoint"))
    first, second = (student.state_dict() for student in students)
    assert all(torch.equal(first[name], second[name]) for name in first)
    teacher = open_checkpoint(tmp_path / "checkpoint")[1].sha256()
    assert students[0].config.teacher == teacher and students[0].config.block == 1


def test_a_shallow_block_learns_beside_the_deep_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "checkpoint", class_config())
    write_checkpoint(tmp_path / "other", class_config(), seed=1)
    command = ["distill", str(tmp_path / "checkpoint"), *QUICK, "--images", "16", "--passes", "1", "-o"]
    deep, shallow = tmp_path / "deep", tmp_path / "shallow"
    assert main([*command, str(deep)]) == 0
    beside = ["--beside", str(deep / "checkpoint-best")]
    assert main([*command, str(shallow), "--block", "0", *beside]) == 0
    found, figures = read_student(shallow / "checkpoint-best"), read_figures(shallow / "checkpoint-best")
    assert found.config.block == 0 and found.config.layers == 1
    assert figures is not None and figures.beside == (1,)
    with Sampler.open(shallow / "teacher.bundle", plan="student") as sampler:
        assert isinstance(sampler.plan, DecodePlan) and sorted(sampler.plan.students) == [0, 1]  # what was measured
    assert all(np.isfinite(value) for value in (figures.divergence, figures.frechet, figures.diversity))
    capsys.readouterr()
    for block, said in (("1", "is of flow block 1, which already has a student here"), ("7", "a network: 0, 1")):
        assert main([*command, str(tmp_path / "wrong"), "--block", block, *beside]) == 2
        assert said in capsys.readouterr().err
    assert main([*command, str(tmp_path / "wrong"), "--block", "0", "--guidance", "4", "6", *beside]) == 2
    assert "was trained for guidance 0 to 3, and this student is measured at 5" in capsys.readouterr().err
    command[1] = str(tmp_path / "other")
    assert main([*command, str(tmp_path / "wrong"), "--block", "0", *beside]) == 2
    assert "was distilled from another checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "wrong" / "pairs").exists()


def test_wrong_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "checkpoint", class_config())
    write_continuous(tmp_path / "continuous", velocity_config())
    folder = ["-o", str(tmp_path / "run")]
    for arguments, said in (
        (["nowhere", *folder], "does not exist"),
        ([str(tmp_path / "continuous"), *folder], "has no flow blocks"),
        ([str(tmp_path / "checkpoint"), *folder, "--guidance", "3", "1"], "the smaller weight first"),
        ([str(tmp_path / "checkpoint"), *folder, "--pairs", "7"], "student.pairs: found 7, expected 8 or more"),
        ([str(tmp_path / "checkpoint"), *folder, "--set", "training.stepz=3"], "stepz"),
        ([str(tmp_path / "checkpoint"), *folder, "--max-steps", "0"], "--max-steps"),
    ):
        assert main(["distill", *arguments]) in (1, 2)
        error = capsys.readouterr().err.strip()
        assert said in error and "\n" not in error and "internal error" not in error
    assert not (tmp_path / "run").exists()
