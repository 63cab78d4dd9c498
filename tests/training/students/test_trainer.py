"""A distillation: the divergence against a closed form, exact resume, and what it keeps."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from starflow.runtime.plain.errors import CheckpointError, UsageError
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.config import CheckpointConfig
from starflow.training.data.samples import Dataset
from starflow.training.families import build_flow
from starflow.training.recipe import StudentRecipe
from starflow.training.students.config import StudentConfig
from starflow.training.students.folder import read_student, save_student
from starflow.training.students.network import Made
from starflow.training.students.pairs import Pairs, PairSet, begin_pairs, load_pairs, shard_path, write_shard
from starflow.training.students.trainer import StudentRun
from tests.models import contextless, randomise, tarflow_config, unconditional_config

SETTINGS = {
    "steps": 6,
    "batch_size": 4,
    "warmup_steps": 1,
    "log_every": 2,
    "evaluate_every": 3,
    "sample_every": 6,
    "checkpoint_every": 3,
}


def make(
    folder: Path, checkpoint: CheckpointConfig, *, block: int = 1, untrained: bool = False, **sections: object
) -> StudentRun:
    flow = randomise(build_flow(checkpoint.model))
    if untrained:
        contextless(flow)
        for each in flow.blocks:
            each.get_parameter("proj_out.bias").data.zero_()
    config = StudentConfig(
        model=flow.config,
        conditioning=checkpoint.conditioning,
        teacher="0" * 64,
        block=block,
        layers=flow.block_configs[block].layers,
        guidance=(0, 2),
    )
    recipe = StudentRecipe.model_validate({"training": SETTINGS, "objective": {"density_from": 2}} | sections)
    return StudentRun(recipe, config, flow, dataset(flow, checkpoint), None, folder)


def dataset(flow: AutoregressiveFlow, checkpoint: CheckpointConfig) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    shape = (flow.side**2, flow.config.token_dim)

    def part(count: int) -> Pairs:
        values = torch.randn(count, 2, *shape, generator=generator)
        labels = None if checkpoint.conditioning.kind == "none" else torch.arange(count) % 3
        return Pairs(values, labels, None, torch.rand(count, generator=generator))

    return Dataset(part(8), part(4), part(4), checkpoint.conditioning, None, split="pairs")


def noise_of(run: StudentRun, count: int) -> torch.Tensor:
    """Noise of the deep block, [count, T, D] in block order."""
    prior = run.teacher.prior
    return prior * torch.randn(count, *prior.shape, generator=torch.Generator().manual_seed(0))


def test_the_divergence_of_a_wider_normal_distribution(tmp_path: Path) -> None:
    run = make(tmp_path, unconditional_config(), untrained=True)
    scale, shift = 1.5, 0.25
    z = noise_of(run, 4096)
    made = Made(scale * z + shift, torch.full_like(z, math.log(scale)))
    expected = 0.5 * (scale**2 + shift**2 - 1) - math.log(scale)
    assert run.divergence(made, z, None, torch.zeros(len(z))).mean().item() == pytest.approx(expected, abs=0.01)


def test_the_teacher_has_no_divergence_from_itself(tmp_path: Path) -> None:
    run = make(tmp_path, tarflow_config(), untrained=True)
    run.flow.get_buffer("var").uniform_(0.5, 2.0)
    z = noise_of(run, 5)
    made = Made(z, torch.zeros_like(z))
    assert run.divergence(made, z, torch.arange(5) % 3, torch.ones(5)).abs().max() < 1e-5


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("config", [unconditional_config(), tarflow_config()], ids=["unconditional", "tarflow"])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    tmp_path: Path, config: CheckpointConfig, block: int
) -> None:
    make(tmp_path / "whole", config, block=block).fit()
    make(tmp_path / "parts", config, block=block).fit(max_steps=3)
    second = make(tmp_path / "parts", config, block=block)
    assert second.resume()
    outcome = second.fit()
    whole, parts = (read_student(tmp_path / name / "checkpoint").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert outcome.step == 6 and outcome.validation_divergence is not None
    assert list((tmp_path / "parts" / "samples").glob("*.png"))


def test_pairs_in_a_devices_memory_keep_their_guidance(tmp_path: Path) -> None:
    pairs = make(tmp_path, tarflow_config()).data.train
    assert isinstance(pairs, Pairs)
    resident = pairs.resident(torch.device("meta"))
    assert resident.guidance is not None and resident.guidance.device.type == "meta"
    assert pairs.guidance is not None and resident.guidance.shape == pairs.guidance.shape


@pytest.mark.gpu
@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("config", [unconditional_config(), tarflow_config()], ids=["unconditional", "tarflow"])
def test_a_run_on_a_gpu_stops_and_goes_on(tmp_path: Path, config: CheckpointConfig, block: int) -> None:
    make(tmp_path, config, block=block, training=SETTINGS | {"device": "cuda"}).fit(max_steps=3)
    second = make(tmp_path, config, block=block, training=SETTINGS | {"device": "cuda"})
    assert second.resume()
    assert second.fit().step == 6


def test_learning_brings_a_student_nearer(tmp_path: Path) -> None:
    run = make(tmp_path, unconditional_config(), training=SETTINGS | {"steps": 40, "learning_rate": 3e-3})
    before = run.judge(run.data.train)["objective"]
    run.fit()
    run.average = run.model
    assert run.judge(run.data.train)["objective"] < 0.8 * before


def test_alignment_brings_hidden_states_nearer(tmp_path: Path) -> None:
    """As an objective of its own; what the run is judged by does not know it."""
    alone = {"pairs": 0, "likelihood": 0, "density": 0, "hidden": 1}
    settings = SETTINGS | {"steps": 40, "learning_rate": 3e-3, "log_every": 1}
    run = make(tmp_path, unconditional_config(), training=settings, objective=alone)
    run.fit()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    hidden = [line["hidden"] for line in lines if "hidden" in line]
    assert len(hidden) == 40 and hidden[-1] < 0.8 * hidden[0]
    assert all(line["validation_objective"] == 0 for line in lines if "validation_objective" in line)


def test_the_density_of_a_pairs_noise_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path, unconditional_config(), block=0)
    known, calls = run.teacher.noise_log_density, list[int]()

    def counted(z: torch.Tensor, *given: Any) -> torch.Tensor:
        calls.append(len(z))
        return known(z, *given)

    monkeypatch.setattr(run.teacher, "noise_log_density", counted)
    index, weights = torch.arange(4), torch.ones(4)
    noise = run.data.train.tensor[:4, 0]
    found = [run._of_pairs(index, noise, None, weights) for _ in range(2)]
    assert torch.equal(*found) and calls == [4]
    torch.testing.assert_close(found[0], known(noise, None, None, weights))


@pytest.mark.parametrize(
    ("block", "given", "weight"), [(1, {}, 0.0), (0, {}, 0.3), (1, {"density": 0.2}, 0.2), (0, {"density": 0}, 0.0)]
)
def test_the_divergence_counts_for_shallow_blocks_unless_told_otherwise(
    tmp_path: Path, block: int, given: dict[str, float], weight: float
) -> None:
    run = make(tmp_path, unconditional_config(), block=block, objective={"density_from": 2} | given)
    run.fit()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    counted = [line["step"] for line in lines if "divergence" in line]
    assert run.density == weight and counted == ([3, 4, 5, 6] if weight else [])


def test_a_student_comes_back_from_its_folder(tmp_path: Path) -> None:
    run = make(tmp_path, tarflow_config())
    torch.nn.init.normal_(run.model.get_parameter("embed_guidance.2.weight"))
    save_student(tmp_path / "student", run.model, run.config)
    read = read_student(tmp_path / "student")
    z, labels, weights = noise_of(run, 2), torch.tensor([0, 2]), torch.tensor([0.0, 1.5])
    assert torch.equal(read(z, labels, weights), run.model.eval()(z, labels, weights))
    assert read.config == run.config


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_student_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    run = make(tmp_path, unconditional_config())
    save_student(tmp_path / "student", run.model, run.config)
    path = tmp_path / "student" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_student(tmp_path / "student")
    path.unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        read_student(tmp_path / "student")
    with pytest.raises(UsageError, match="does not exist"):
        read_student(tmp_path / "nowhere")


def shard(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise, tokens = torch.randn(2, 256, 4, 3, generator=generator).unbind()
    whole = {"noise": noise, "tokens": tokens, "guidance": torch.zeros(256)}
    return {name: value.clone() for name, value in whole.items()}


def test_pairs_come_back_from_their_shards(tmp_path: Path) -> None:
    record = PairSet(teacher="0" * 64, block=1, seed=0, guidance=(0, 1), count=300)
    begin_pairs(tmp_path, record)
    for number in range(record.shards):
        write_shard(tmp_path, number, shard(number))
    pairs = load_pairs(tmp_path)
    assert len(pairs) == 300 and pairs.condition is None
    assert torch.equal(pairs.tensor[256:, 1], shard(1)["tokens"][:44])
    begin_pairs(tmp_path, record.model_copy(update={"count": 100}))
    assert len(load_pairs(tmp_path)) == 100
    with pytest.raises(UsageError, match="pairs of another seed"):
        begin_pairs(tmp_path, record.model_copy(update={"seed": 1}))
    shard_path(tmp_path, 0).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="remove it, and it is drawn again"):
        load_pairs(tmp_path)
