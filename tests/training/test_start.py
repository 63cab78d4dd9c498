"""Runs that begin with a checkpoint: what they take from it, what learns, and what adapters become."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from starflow.runtime.plain.errors import RecipeError, StarflowError
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.checkpoint import load_autoregressive, load_flow, open_checkpoint
from starflow.training.data.dataset import load_dataset
from starflow.training.recipe import Recipe
from starflow.training.trainer import Trainer
from tests.models import randomise, tarflow_config, velocity_config, write_checkpoint, write_velocity
from tests.training.recipes import load_flow_recipe

ADAPTERS = {"rank": 4, "alpha": 8}


def ten_classes() -> Any:
    config = tarflow_config()
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"num_classes": 10}),
            "conditioning": config.conditioning.model_copy(update={"num_classes": 10}),
            "noise_std": 0.2,
        }
    )


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A recipe that goes on from a random checkpoint."""
    write_checkpoint(tmp_path / "start", ten_classes())
    content = {
        "start": {"checkpoint": str(tmp_path / "start")},
        "data": {"kind": "digits8"},
        "training": {"steps": 6, "batch_size": 32, "warmup_steps": 0, "learning_rate": 5e-3, "evaluate_every": 100},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "recipe.yaml"


def trainer_of(recipe: Recipe, folder: Path) -> Trainer:
    return Trainer(recipe, load_dataset(recipe.data, cache=folder), folder)


def changed(path: Path, **sections: Any) -> Recipe:
    """The recipe with other sections."""
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **sections}))
    return load_flow_recipe(path)


def with_adapters(path: Path) -> Recipe:
    return load_flow_recipe(path, [f"start.adapters={ADAPTERS}"])


def one_and_other(tmp_path: Path, other: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return load_flow(tmp_path / "start")[1].state_dict(), load_flow(other)[1].state_dict()


def test_model_and_noise_come_from_the_checkpoint(begun: Path) -> None:
    recipe = load_flow_recipe(begun)
    assert recipe.model == ten_classes().model and recipe.training.noise_std == 0.2
    assert load_flow_recipe(begun, ["training.noise_std=0.05"]).training.noise_std == 0.05
    with pytest.raises(RecipeError, match=r"model: found another model than that of start.checkpoint"):
        changed(begun, model={**ten_classes().model.model_dump(mode="json"), "channels": 64})


@pytest.mark.parametrize("adapters", [False, True])
def test_a_run_begins_with_the_weights_and_learns(begun: Path, tmp_path: Path, adapters: bool) -> None:
    recipe = with_adapters(begun) if adapters else load_flow_recipe(begun)
    trainer = trainer_of(recipe, tmp_path / "run")
    before = trainer.evaluate(trainer.data.validation)
    own = trainer_of(recipe.model_copy(update={"start": None}), tmp_path / "other")
    own.average.load_state_dict(load_flow(tmp_path / "start")[1].state_dict())
    assert before == pytest.approx(own.evaluate(own.data.validation), abs=1e-6)
    trainer.fit()
    assert trainer.evaluate(trainer.data.validation) < before - 0.01
    was, now = one_and_other(tmp_path, tmp_path / "run/checkpoint")
    assert was.keys() == now.keys()
    changed = {name for name in was if not torch.equal(was[name], now[name])}
    if not adapters:
        assert len(changed) > 0.9 * len(was)
        return
    linear = {name for name in was if ".attn_blocks." in name and name.endswith(".weight") and was[name].ndim == 2}
    assert changed == linear
    for name in changed:
        assert torch.linalg.matrix_rank(now[name] - was[name], rtol=1e-3) <= ADAPTERS["rank"]


def test_a_checkpoint_has_the_adapters_merged(begun: Path, tmp_path: Path) -> None:
    trainer = trainer_of(with_adapters(begun), tmp_path / "run")
    trainer.fit()
    _, merged = load_autoregressive(tmp_path / "run/checkpoint")
    adapted = trainer.average
    assert isinstance(adapted, AutoregressiveFlow)
    x, y = torch.randn(3, 1, 8, 8), torch.tensor([1, 4, -1])
    with torch.no_grad():
        torch.testing.assert_close(adapted(x, y).z, merged(x, y).z, atol=1e-5, rtol=1e-5)
    state = dict(adapted.named_parameters())
    was, now = one_and_other(tmp_path, tmp_path / "run/checkpoint")
    name = next(name for name in was if name.endswith("attention.qkv.weight"))
    a, b = (state[name.replace(".weight", f".lora_{part}.default.weight")] for part in "AB")
    torch.testing.assert_close(now[name], was[name] + ADAPTERS["alpha"] / ADAPTERS["rank"] * b @ a)


@pytest.mark.parametrize("adapters", [False, True])
def test_a_resumed_run_ends_as_one_that_was_not_stopped(begun: Path, tmp_path: Path, adapters: bool) -> None:
    recipe = with_adapters(begun) if adapters else load_flow_recipe(begun)
    trainer_of(recipe, tmp_path / "whole").fit()
    trainer_of(recipe, tmp_path / "parts").fit(max_steps=3)
    second = trainer_of(recipe, tmp_path / "parts")
    assert second.resume() and second.step == 3
    second.fit()
    one, other = (load_flow(tmp_path / run / "checkpoint")[1].state_dict() for run in ("whole", "parts"))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_averages_share_what_does_not_learn(begun: Path, tmp_path: Path) -> None:
    trainer = trainer_of(with_adapters(begun), tmp_path / "run")
    averaged = dict(trainer.average.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        assert (averaged[name] is parameter) == (not parameter.requires_grad)


def test_a_continuous_flow_goes_on(tmp_path: Path) -> None:
    config = velocity_config(num_classes=10)
    write_velocity(tmp_path / "start", config)
    content = {
        "start": {"checkpoint": str(tmp_path / "start"), "adapters": ADAPTERS},
        "data": {"kind": "digits8"},
        "objective": {"kind": "cfm", "likelihood_steps": 2, "likelihood_samples": 32},
        "training": {"steps": 2, "batch_size": 16},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    recipe = load_flow_recipe(tmp_path / "recipe.yaml")
    trainer_of(recipe, tmp_path / "run").fit()
    was, now = one_and_other(tmp_path, tmp_path / "run/checkpoint")
    assert was.keys() == now.keys()
    assert all("layers." in name for name in was if not torch.equal(was[name], now[name]))
    assert any(not torch.equal(was[name], now[name]) for name in was)


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ({"checkpoint": "nowhere"}, "nowhere: does not exist"),
        ({"checkpoint": 3}, "start.checkpoint"),
        ({}, "start.checkpoint"),
        ({"checkpoint": "start", "adapters": {"rank": 0}}, "start.adapters.rank"),
        ({"checkpoint": "start", "weights": 1}, "start.weights"),
    ],
)
def test_wrong_starts(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: dict[str, Any], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StarflowError, match=says) as refused:
        changed(begun, start=start)
    assert "\n" not in str(refused.value)


def test_weights_that_were_replaced_meanwhile(begun: Path, tmp_path: Path) -> None:
    recipe = load_flow_recipe(begun)
    other = ten_classes()
    other = other.model_copy(update={"model": other.model.model_copy(update={"channels": 48})})
    write_checkpoint(tmp_path / "start", other)
    with pytest.raises(StarflowError, match="start"):
        trainer_of(recipe, tmp_path / "run")


def test_the_checkpoint_says_what_its_data_are(begun: Path, tmp_path: Path) -> None:
    trainer = trainer_of(load_flow_recipe(begun), tmp_path / "run")
    randomise(trainer.average, 1)
    trainer.save()
    config, _ = open_checkpoint(tmp_path / "run/checkpoint")
    assert config.noise_std == 0.2 and config.conditioning.num_classes == 10
