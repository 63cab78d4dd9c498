"""The trainer: exact resume, closed forms, and that it learns."""

import copy
import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from starflow.runtime.plain.errors import CheckpointError, RecipeError, StarflowError, UsageError
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.checkpoint import load_autoregressive
from starflow.training.continuous.objective_config import ObjectiveConfig
from starflow.training.data.dataset import load_dataset
from starflow.training.data.samples import Dataset
from starflow.training.data.source import Digits8Source
from starflow.training.random_streams import STEP, generator_for
from starflow.training.recipe import Recipe, Training
from starflow.training.runs.optimizer import average_decay_at, build_optimizer, learning_rate_at, update_average
from starflow.training.runs.run_folder import alone_in
from starflow.training.trainer import Trainer, drop_conditions, noisy_features

STARFLOW = {
    "family": "starflow",
    "in_channels": 1,
    "img_size": 8,
    "patch_size": 2,
    "channels": 16,
    "head_dim": 16,
    "num_blocks": 2,
    "layers_per_block": [1, 2],
    "txt_size": 1,
    "txt_dim": 11,
    "cond_top_only": True,
    "rope": True,
    "sos": True,
    "use_softplus": True,
}
TARFLOW = {
    "family": "tarflow",
    "in_channels": 1,
    "img_size": 8,
    "patch_size": 2,
    "channels": 16,
    "head_dim": 8,
    "num_blocks": 2,
    "layers_per_block": 1,
    "num_classes": 10,
}
VELOCITY = {
    "family": "continuous-flow",
    "network": "transformer",
    "in_channels": 1,
    "img_size": 8,
    "patch_size": 2,
    "channels": 16,
    "layers": 2,
    "head_dim": 16,
    "num_classes": 10,
}
WEIGHTED = {"kind": "w-cfm", "kappa": 0.5, "normalise": "running", "likelihood_steps": 2, "likelihood_samples": 100}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(Digits8Source.model_validate({"kind": "digits8"}), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def few(digits: Dataset) -> Dataset:
    """As many of them as six steps of 32 take, and a few to judge by."""
    return replace(
        digits,
        train=digits.train[torch.arange(6 * 32)],
        test=digits.test[torch.arange(8)],
        validation=digits.validation[torch.arange(8)],
    )


def recipe(model: dict[str, Any] = STARFLOW, **training: Any) -> Recipe:
    # 64 images a step make 23 steps an epoch.
    settings = {"steps": 30, "batch_size": 64, "warmup_steps": 5, "threads": 1, "learning_rate": 3e-3} | training
    sections: dict[str, Any] = {"model": model, "data": {"kind": "digits8"}, "training": settings}
    if model["family"] == "continuous-flow":
        sections["objective"] = WEIGHTED
    return Recipe.model_validate(sections)


def losses(folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    entries = [entry for entry in entries if "loss" in entry]
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    return [entry["loss"] for entry in entries]


LEARNED = {"kind": "w-cfm", "kappa": 0.5, "cost": "squared", "marginals": "learned", "potential_steps": 3}


def test_a_killed_run_resumes_its_potentials(tmp_path: Path, few: Dataset) -> None:
    settings = recipe(VELOCITY, steps=6, batch_size=32)
    objective = TypeAdapter(ObjectiveConfig).validate_python(LEARNED | {"likelihood_steps": 1, "likelihood_samples": 4})
    settings = settings.model_copy(update={"objective": objective})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    Trainer(settings, few, whole).fit()
    Trainer(settings, few, killed).fit(max_steps=3)
    again = Trainer(settings, few, killed)
    assert again.resume()
    again.fit()
    assert losses(killed) == losses(whole)
    assert int(again.objective.memory["potentials.updates"]) == 3 + 3


@pytest.mark.parametrize("model", [STARFLOW, VELOCITY])
@pytest.mark.parametrize("settings", [{}, {"accumulate": 4, "shift": 1, "precision": "bf16", "noise_std": 0.0}])
def test_a_killed_run_resumes_exactly(
    tmp_path: Path, few: Dataset, model: dict[str, Any], settings: dict[str, Any]
) -> None:
    whole, killed, settings = tmp_path / "whole", tmp_path / "killed", {"steps": 9, "batch_size": 32} | settings
    Trainer(recipe(model, **settings), few, whole).fit()
    Trainer(recipe(model, **settings), few, killed).fit(max_steps=4)
    # Steps after the last saved state, and a line cut in the middle: what a kill leaves behind.
    with (killed / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "loss": 99.0}\n{"step": 6, "lo')
    resumed = Trainer(recipe(model, **settings), few, killed)
    assert resumed.resume()
    assert resumed.step == 4
    outcome = resumed.fit()
    assert not outcome.interrupted
    assert losses(killed) == pytest.approx(losses(whole), abs=1e-6)
    assert len(losses(killed)) == 9
    one, other = (torch.load(folder / "state.pt", weights_only=True) for folder in (whole, killed))
    for part in ("model", "objective"):
        for name, value in one[part].items():
            torch.testing.assert_close(other[part][name], value, rtol=0, atol=1e-6)
    torch.testing.assert_close(other["averages"], one["averages"], rtol=0, atol=1e-6)
    assert list(one["objective"]) == (["log_mean_weight"] if model is VELOCITY else [])


OVERFITTING = {
    "steps": 300,
    "batch_size": 32,
    "learning_rate": 1e-2,
    "warmup_steps": 10,
    "noise_std": 0.05,
    "label_drop": 0.0,
    "evaluate_every": 10,
    "checkpoint_every": 15,
    "sample_every": 1000,
    "patience": 3,
    "ema_decay": (0.5, 0.9),
    "attention_dropout": 0.05,
    "feed_forward_dropout": 0.05,
    "embedding_dropout": 0.01,
}


def test_the_best_checkpoint_is_kept_and_training_stops(tmp_path: Path, digits: Dataset) -> None:
    """32 digits are soon known by heart. What is best is judged here once more, from the files."""
    tiny = replace(digits, train=digits.train[torch.arange(32)], validation=digits.validation[torch.arange(40)])
    settings, folder = recipe(STARFLOW | {"channels": 32}, **OVERFITTING), tmp_path / "whole"
    outcome = Trainer(settings, tiny, folder).fit()
    assert outcome.stopped_early and not outcome.interrupted
    assert outcome.best_step is not None
    assert outcome.step == outcome.best_step + 3 * 10 < outcome.total_steps
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    judged = {
        entry["step"]: entry["validation_bits_per_dim"] for entry in entries if "validation_bits_per_dim" in entry
    }
    assert list(judged) == list(range(10, outcome.step + 1, 10))
    assert min(judged, key=lambda step: judged[step]) == outcome.best_step
    assert (folder / "samples" / f"{outcome.best_step:07d}.png").is_file()
    metrics = json.loads((folder / "checkpoint-best" / "metrics.json").read_text())
    assert metrics["step"] == metrics["validation_step"] == metrics["test_step"] == outcome.best_step
    judge = Trainer(settings, tiny, tmp_path / "judge")
    for name in ("checkpoint-best", "checkpoint"):
        _, model = load_autoregressive(folder / name)
        judge.average.load_state_dict(model.state_dict())
        step = json.loads((folder / name / "metrics.json").read_text())["step"]
        assert judge.evaluate(tiny.validation) == pytest.approx(judged[step], abs=1e-5)
    assert judge.evaluate(tiny.validation) > metrics["validation_bits_per_dim"] + 0.02  # the last one is worse

    # Killed after it had kept a best checkpoint that its last saved state knows nothing of.
    killed = tmp_path / "killed"

    best_step = outcome.best_step

    def kill() -> bool:
        if trainer.step == best_step + 2:
            raise KeyboardInterrupt
        return False

    trainer = Trainer(settings, tiny, killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(should_stop=kill)
    again = Trainer(settings, tiny, killed)
    assert again.resume()
    assert again.step < outcome.best_step
    resumed = again.fit()
    assert resumed == replace(outcome, images_per_second=resumed.images_per_second)
    for name in ("checkpoint-best", "checkpoint"):
        for file in ("model.safetensors", "metrics.json"):
            assert (killed / name / file).read_bytes() == (folder / name / file).read_bytes()
    one, other = (torch.load(each / "state.pt", weights_only=True) for each in (folder, killed))
    assert one["best"] == other["best"] == {"step": outcome.best_step, "value": judged[outcome.best_step], "waited": 3}
    stopped = Trainer(settings, tiny, killed)
    assert stopped.resume()
    assert stopped.fit().step == outcome.step  # patience is still at its end
    patient = Trainer(recipe(STARFLOW | {"channels": 32}, **OVERFITTING | {"patience": 4}), tiny, killed)
    assert patient.resume()
    assert patient.fit().step >= outcome.step + 10


def test_patience_counts_evaluations_of_the_schedule_only(tmp_path: Path, digits: Dataset) -> None:
    """`--max-steps` evaluates where it stops; a run that goes on from there is as patient as one that did not stop."""
    settings = recipe(steps=40, evaluate_every=8, checkpoint_every=100, patience=1)
    trainer = Trainer(settings, digits, tmp_path)
    trainer.fit(max_steps=3)
    assert (trainer.best.step, trainer.best.waited) == (None, 0)
    assert trainer.metrics["validation_step"] == trainer.metrics["test_step"] == 3
    trainer.fit(max_steps=8)
    assert trainer.best.step == 8


def test_validation_chooses_the_average(tmp_path: Path, digits: Dataset) -> None:
    """After few steps from the start, an average with a long memory is worse than one with a short one."""
    trainer = Trainer(recipe(steps=40, ema_decay=(0.999, 0.5), evaluate_every=20), digits, tmp_path)
    trainer.fit()
    bits = {}
    for decay, average in trainer.averages.items():
        trainer.average = average  # type: ignore[assignment]
        bits[decay] = trainer.evaluate(trainer.data.validation)
    best = min(bits, key=lambda decay: bits[decay])
    assert trainer.metrics["ema_decay"] == best
    assert trainer.metrics["validation_bits_per_dim"] == pytest.approx(bits[best], abs=1e-6)
    again = Trainer(recipe(steps=40, ema_decay=(0.999, 0.5), evaluate_every=20), digits, tmp_path)
    assert again.resume()
    assert again.average is again.averages[best]
    _, kept = load_autoregressive(tmp_path / "checkpoint")
    torch.testing.assert_close(kept.state_dict(), again.averages[best].state_dict(), rtol=0, atol=0)


def test_a_run_of_an_earlier_version_is_not_continued(tmp_path: Path, digits: Dataset) -> None:
    """It has learned from images that are held out now."""
    Trainer(recipe(), digits, tmp_path).fit(max_steps=1)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["split"]
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(RecipeError, match=r"an earlier version began this run and held out other images; use another"):
        Trainer(recipe(), digits, tmp_path).resume()


def test_the_learned_prior_counts_in_the_running_bits(tmp_path: Path, digits: Dataset) -> None:
    trainer = Trainer(recipe(TARFLOW | {"nvp": False}, noise_std=0.0, accumulate=2), digits, tmp_path)
    for _ in range(3):  # until the prior differs from a standard normal
        trainer.train_step()
    before, memory = copy.deepcopy(trainer.model), trainer.step
    figures = {name: float(value) for name, value in trainer.train_step().items()}
    x, y = trainer.prepare(trainer.batch_at(memory), generator_for(0, STEP, memory))
    assert isinstance(before, AutoregressiveFlow)
    expected = -float(before.log_likelihood(x, y).detach().mean()) / 64 / math.log(2) + math.log2(127.5)
    assert f"{expected:.3f} bits/dim" in trainer.described(figures)
    assert f"{trainer._bits(figures['loss']):.3f} bits/dim" not in trainer.described(figures)


def test_stopping_saves_and_says_so(tmp_path: Path, digits: Dataset) -> None:
    asked = iter([False, False, True])
    outcome = Trainer(recipe(), digits, tmp_path).fit(should_stop=lambda: next(asked))
    assert (outcome.step, outcome.interrupted) == (2, True)
    assert [sheet.stem for sheet in (tmp_path / "samples").iterdir()] == ["0000002"]
    again = Trainer(recipe(), digits, tmp_path)
    assert again.resume()
    assert again.step == 2
    assert len(losses(tmp_path)) == 2


@pytest.mark.parametrize("model", [STARFLOW, VELOCITY])
def test_accumulation_equals_one_big_batch(tmp_path: Path, digits: Dataset, model: dict[str, Any]) -> None:
    one, four = (Trainer(recipe(model, accumulate=n), digits, tmp_path) for n in (1, 4))
    for _ in range(4):
        whole, parts = one.train_step(), four.train_step()
        torch.testing.assert_close(whole["loss"], parts["loss"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(whole["gradient_norm"], parts["gradient_norm"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [STARFLOW, TARFLOW, TARFLOW | {"nvp": False}, TARFLOW | {"num_classes": 0}])
def test_it_learns_and_leaves_a_checkpoint(tmp_path: Path, digits: Dataset, model: dict[str, Any]) -> None:
    trainer = Trainer(recipe(model, steps=60, sample_guidance=0.5, sample_every=20), digits, tmp_path)
    before = trainer.evaluate(trainer.data.test)
    outcome = trainer.fit()
    assert outcome.test_step == 60
    assert outcome.test_bits_per_dim is not None
    # Volume-preserving flows cannot shrink; they gain by their prior.
    assert outcome.test_bits_per_dim < before - 0.5
    assert (tmp_path / "samples" / "0000020.png").is_file()
    config, loaded = load_autoregressive(tmp_path / "checkpoint")
    assert config.conditioning.kind == ("class" if model.get("num_classes", 1) else "none")
    assert config.image.mode == "L"
    assert config.noise_std == 0.1
    for name, value in trainer.average.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)
    metrics = json.loads((tmp_path / "checkpoint" / "metrics.json").read_text())
    assert metrics["test_bits_per_dim"] == outcome.test_bits_per_dim


def test_bits_of_the_loss_and_of_the_likelihood_agree(tmp_path: Path, digits: Dataset) -> None:
    trainer = Trainer(recipe(noise_std=0.0), digits, tmp_path)
    generator = torch.Generator().manual_seed(0)
    x, y = trainer.prepare(trainer.data.test.to(trainer.device), generator)
    model = trainer.model
    assert isinstance(model, AutoregressiveFlow)
    expected = -float(model.log_likelihood(x, y).detach().mean()) / 64 / math.log(2) + math.log2(127.5)
    assert trainer._bits(model(x, y).loss.item()) == pytest.approx(expected, abs=1e-4)


def test_batches_cover_an_epoch_once(tmp_path: Path, digits: Dataset) -> None:
    trainer = Trainer(recipe(), digits, tmp_path)
    seen = [trainer.batch_at(step).values for step in range(trainer.steps_per_epoch)]
    assert torch.cat(seen).shape[0] == 23 * 64
    every = [trainer.batches.indices(step) for step in range(2 * 23)]
    orders = [torch.cat(epoch) for epoch in (every[:23], every[23:])]
    for order in orders:
        assert len(set(order.tolist())) == 23 * 64
        assert int(order.min()) >= 0 and int(order.max()) < len(digits.train)
    assert not torch.equal(*orders)


def test_randomness_is_a_function_of_seed_stream_and_index() -> None:
    def draw(seed: int, stream: int, index: int) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=generator_for(seed, stream, index)).tolist())

    assert draw(0, 1, 2) == draw(0, 1, 2)
    assert len({draw(0, 1, 2), draw(1, 1, 2), draw(0, 2, 2), draw(0, 1, 3)}) == 4


def test_conditions_are_dropped_at_the_rate() -> None:
    count, rate = 20_000, 0.1
    labels = torch.arange(count) % 10
    dropped = drop_conditions(labels, torch.tensor(10), rate, torch.Generator().manual_seed(0))
    part = float((dropped == 10).float().mean())
    assert abs(part - rate) < 4 * math.sqrt(rate * (1 - rate) / count)
    assert torch.equal(dropped[dropped != 10], labels[dropped != 10])
    features = torch.ones(64, 3, 5)
    dropped = drop_conditions(features, torch.zeros(3, 5), 0.5, torch.Generator().manual_seed(0))
    assert {float(sample.mean()) for sample in dropped} == {0.0, 1.0}  # whole conditions, not elements


def test_noise_on_features_follows_the_size_of_each_token() -> None:
    features = torch.cat([torch.full((1, 1, 4096), 2.0), torch.full((1, 1, 4096), -8.0), torch.zeros(1, 1, 4096)], 1)
    noise = noisy_features(features, 0.25, torch.Generator().manual_seed(0)) - features
    assert noise.std(-1)[0].tolist() == pytest.approx([0.5, 2.0, 0.0], rel=0.05)
    assert noise.mean(-1)[0].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=0.15)


def test_learning_rate_follows_the_closed_form() -> None:
    training = Training.model_validate(
        {"steps": 100, "warmup_steps": 10, "learning_rate": 1.0, "final_learning_rate": 0.1}
    )
    rates = [learning_rate_at(step, 110, training) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)  # half of the cosine
    assert rates[35] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[110] == pytest.approx(0.1)
    without_warmup = Training.model_validate({"steps": 10, "warmup_steps": 0, "learning_rate": 2.0})
    assert learning_rate_at(0, 10, without_warmup) == 2.0


def test_average_follows_the_closed_form() -> None:
    average, model = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(average.weight)
    for value in (1.0, 2.0, 3.0):
        nn.init.constant_(model.weight, value)
        update_average(average, model, 0.9)
    assert average.weight.item() == pytest.approx(0.1 * (1 * 0.81 + 2 * 0.9 + 3))
    assert average_decay_at(0, 0.999) == pytest.approx(0.1)
    assert average_decay_at(100_000, 0.999) == 0.999
    assert average_decay_at(5, 0.0) == 0.0


def test_only_matrices_decay(tmp_path: Path, digits: Dataset) -> None:
    trainer = Trainer(recipe(TARFLOW), digits, tmp_path)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in trainer.optimizer.param_groups)
    assert decayed | free == set(names.values())
    assert all(name.endswith(".weight") and "norm" not in name for name in decayed)
    assert any("pos_embed" in name for name in free)
    assert [group["weight_decay"] for group in build_optimizer(trainer.model, trainer.training).param_groups] == [
        1e-4,
        0.0,
    ]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, digits: Dataset) -> None:
    trainer = Trainer(recipe(), digits, tmp_path)
    trainer.fit(max_steps=3)
    with torch.no_grad():
        next(iter(trainer.model.parameters())).fill_(math.nan)
    with pytest.raises(StarflowError, match=r"step 4: loss nan.*holds the last good state"):
        trainer.fit()
    good = Trainer(recipe(), digits, tmp_path)
    assert good.resume()
    assert good.step == 3
    assert all(value.isfinite().all() for value in good.model.state_dict().values())


def test_resume_refuses_what_is_not_its_own(tmp_path: Path, digits: Dataset) -> None:
    assert not Trainer(recipe(), digits, tmp_path).resume()
    Trainer(recipe(), digits, tmp_path).fit(max_steps=1)
    with pytest.raises(RecipeError, match=r"training\.noise_std \(was 0\.1, is 0\.2\) changed"):
        Trainer(recipe(noise_std=0.2), digits, tmp_path).resume()
    assert Trainer(recipe(steps=60), digits, tmp_path).resume()
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state\.pt: damaged") as caught:
        Trainer(recipe(), digits, tmp_path).resume()
    assert "\n" not in str(caught.value)
    state.unlink()
    state.mkdir()  # nothing says that it is damaged, so nobody is told to start again
    with pytest.raises(CheckpointError, match=r"state\.pt: cannot be read \(is a folder"):
        Trainer(recipe(), digits, tmp_path).resume()


@pytest.mark.parametrize(
    ("model", "training", "expected"),
    [
        (
            STARFLOW | {"img_size": 16},
            {},
            r"model: takes 1 channel\(s\) of 16x16, but the data are 1 channel\(s\) of 8x8",
        ),
        (STARFLOW | {"txt_dim": 12}, {}, r"model\.txt_dim: found 12, expected 11, because the data have 10 classes"),
        (TARFLOW | {"num_classes": 9}, {}, r"model\.num_classes: found 9, expected 10"),
        (STARFLOW, {"batch_size": 5000}, r"training\.batch_size: found 5000, expected at most 1527"),
        (STARFLOW, {"precision": "fp16", "device": "cpu"}, "fp16 trains on CUDA only"),
        (STARFLOW, {"device": "abacus"}, r"training\.device: found 'abacus'"),
        (STARFLOW, {"cuda_graph": True, "device": "cpu"}, r"training\.cuda_graph: found true, expected false"),
        (STARFLOW, {"condition_noise": 0.1}, r"training\.condition_noise: found noise on text features, but the data"),
    ],
)
def test_recipes_that_do_not_fit(
    tmp_path: Path, digits: Dataset, model: dict[str, Any], training: dict[str, Any], expected: str
) -> None:
    with pytest.raises(RecipeError, match=expected):
        Trainer(recipe(model, **training), digits, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_survives_signals(tmp_path: Path, digits: Dataset, number: signal.Signals) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = recipe(steps=300, log_every=1, checkpoint_every=5, evaluate_every=1000, sample_every=1000)
    (tmp_path / "recipe.yaml").write_text(settings.model_dump_json())
    program = (
        "import argparse, sys\nfrom starflow.training.commands import train\n"
        "parser = argparse.ArgumentParser()\ntrain.configure(parser)\nsys.exit(train.run(parser.parse_args()))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "recipe.yaml"), "--out", str(killed), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 12/"):
            with pytest.raises(UsageError, match="another training is at work there"), alone_in(killed):
                pass
            process.send_signal(number)
            break
    output, messages = process.communicate(timeout=120)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert messages.splitlines()[-1].startswith("stopped at step ")
        assert json.loads(output)["interrupted"] is True
        assert not list(killed.glob(".*"))  # nothing half-written
    resumed = Trainer(settings, digits, killed)
    assert resumed.resume()
    assert resumed.step >= 10
    last = resumed.step + 5
    resumed.fit(max_steps=last)
    Trainer(settings, digits, whole).fit(max_steps=last)
    assert losses(killed) == pytest.approx(losses(whole), abs=1e-6)


def test_a_conditional_model_needs_conditions(tmp_path: Path, digits: Dataset) -> None:
    with pytest.raises(RecipeError, match=r"model\.txt_size: found 1, expected 0.*no labels or features"):
        Trainer(recipe(), digits.without_conditions(), tmp_path)
