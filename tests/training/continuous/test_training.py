"""Continuous flows through the trainer, the recipe, the checkpoint and the command that all families share."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from starflow.runtime.plain.errors import CheckpointError, RecipeError, UsageError
from starflow.training.checkpoint import load_autoregressive, load_continuous, open_checkpoint, save_checkpoint
from starflow.training.config import CheckpointConfig, Conditioning
from starflow.training.continuous.flow_matching import FlowMatching
from starflow.training.continuous.objective_config import WeightedCfmConfig
from starflow.training.data.dataset import load_dataset
from starflow.training.data.fit import fit_data
from starflow.training.data.samples import Dataset
from starflow.training.data.split import representative
from starflow.training.families import build_flow
from starflow.training.recipe import Recipe, changed_field
from starflow.training.trainer import Trainer
from tests.models import CLASS_MODEL, class_config, write_checkpoint
from tests.training.recipes import load_flow_recipe

TRANSFORMER: dict[str, Any] = {
    "family": "continuous-flow",
    "network": "transformer",
    "in_channels": 1,
    "img_size": 8,
    "patch_size": 2,
    "channels": 32,
    "layers": 2,
    "head_dim": 32,
    "num_classes": 10,
}
MLP: dict[str, Any] = {"family": "continuous-flow", "network": "mlp", "dimensions": 2, "channels": 32, "layers": 2}
POINTS: dict[str, Any] = {"kind": "points", "shape": "eight_gaussians", "count": 4000}


def recipe(model: dict[str, Any], data: dict[str, Any], objective: dict[str, Any], **training: Any) -> Recipe:
    settings = {"steps": 30, "batch_size": 64, "warmup_steps": 5, "threads": 1, "learning_rate": 3e-3} | training
    return Recipe.model_validate({"model": model, "data": data, "objective": objective, "training": settings})


def run(recipe: Recipe, folder: Path) -> Trainer:
    return Trainer(recipe, load_dataset(recipe.data, folder), folder)


def entries(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", [{"kind": "cfm"}, {"kind": "ot-cfm"}, {"kind": "w-cfm", "kappa": 1.0}])
def test_points_are_learned(tmp_path: Path, objective: dict[str, Any]) -> None:
    trainer = run(recipe(MLP, POINTS, objective, steps=300, noise_std=0.0, learning_rate=1e-2), tmp_path)
    before = trainer.evaluate(trainer.data.test)
    outcome = trainer.fit()
    assert outcome.test_bits_per_dim is not None
    # The true density: an entropy no model can be below, but for the sampling error of 400 held-out points.
    entropy = (math.log(8 * 2 * math.pi * math.e * 0.1**0.5)) / 2 / math.log(2)
    assert entropy - 0.15 < outcome.test_bits_per_dim < min(before - 1, entropy + 0.6)
    steps = [entry for entry in entries(tmp_path) if "loss" in entry]
    assert all(("effective_sample_size" in step) == (objective["kind"] == "w-cfm") for step in steps)
    if objective["kind"] == "w-cfm":
        assert all(1 < step["effective_sample_size"] < 64 for step in steps)
    config, network = load_continuous(tmp_path / "checkpoint")
    assert config.image.mode == "latent"
    assert config.noise_std == 0
    for name, value in trainer.average.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value)
    with Image.open(tmp_path / "samples" / "0000300.png") as sheet:
        assert sheet.size == (256, 128)


def test_images_are_learned(tmp_path: Path) -> None:
    objective = {"kind": "cfm", "likelihood_steps": 4, "likelihood_samples": 64}
    settings = recipe(TRANSFORMER, {"kind": "digits8"}, objective, steps=150, noise_std=0.1, sample_guidance=1.0)
    trainer = run(settings, tmp_path)
    before = trainer.evaluate(trainer.data.test)
    outcome = trainer.fit()
    assert outcome.test_bits_per_dim is not None
    assert outcome.test_bits_per_dim < before - 0.5
    losses = [entry["loss"] for entry in entries(tmp_path) if "loss" in entry]
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    config, _ = load_continuous(tmp_path / "checkpoint")
    assert config.conditioning.kind == "class"
    assert config.image.mode == "L"


def test_bits_of_points_are_those_of_their_density(tmp_path: Path) -> None:
    """A field that stands still makes data standard normal: its bits/dim are known."""
    trainer = run(recipe(MLP, POINTS, {"kind": "cfm"}, noise_std=0.0), tmp_path)
    with torch.no_grad():
        for name, parameter in trainer.average.named_parameters():
            if name.startswith("proj_out"):
                parameter.zero_()
    held_out = trainer.data.test
    x = held_out.tensor[representative(held_out, 256)].double()
    expected = float((0.5 * x.square() + 0.5 * math.log(2 * math.pi)).mean()) / math.log(2)
    assert trainer.evaluate(trainer.data.test) == pytest.approx(expected, rel=1e-5)


def test_bits_of_images_count_grey_levels(tmp_path: Path) -> None:
    objective = {"kind": "cfm", "likelihood_steps": 1, "likelihood_samples": 50}
    trainer = run(recipe(TRANSFORMER, {"kind": "digits8"}, objective, noise_std=0.0), tmp_path)
    held_out = trainer.data.test
    pixels = held_out.tensor[representative(held_out, 50)].double()  # the untrained transformer stands still
    level = 2 / 255
    mean_square = (pixels / 127.5 - 1).square().mean() + level**2 / 12
    expected = (0.5 * float(mean_square) + 0.5 * math.log(2 * math.pi) - math.log(level)) / math.log(2)
    assert trainer.evaluate(trainer.data.test) == pytest.approx(expected, abs=5e-3)


def test_weights_that_underflow_end_the_run_and_keep_the_state(tmp_path: Path) -> None:
    settings = recipe(MLP, POINTS, {"kind": "w-cfm", "kappa": 1.0}, noise_std=0.0)
    trainer = run(settings, tmp_path)
    trainer.fit(max_steps=3)
    trainer.objective = FlowMatching(WeightedCfmConfig(kind="w-cfm", kappa=1e-6))
    with pytest.raises(UsageError, match=r"epsilon 1\.41e-06 is too small.*take one near"):
        trainer.fit()
    again = run(settings, tmp_path)
    assert again.resume()
    assert again.step == 3


def test_features_condition_a_text_model(tmp_path: Path) -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (80, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, features=generator.normal(size=(80, 3, 5)).astype(np.float32))
    model = {k: v for k, v in TRANSFORMER.items() if k != "num_classes"} | {"txt_size": 3, "txt_dim": 5}
    objective = {"kind": "ot-cfm", "likelihood_steps": 1, "likelihood_samples": 4}
    settings = recipe(model, {"kind": "npz", "path": str(tmp_path / "data.npz")}, objective, steps=3, batch_size=16)
    assert run(settings, tmp_path / "run").fit().step == 3
    config, _ = load_continuous(tmp_path / "run" / "checkpoint")
    assert (config.conditioning.kind, config.conditioning.tokens, config.conditioning.width) == ("features", 3, 5)


@pytest.mark.parametrize(
    ("model", "data", "training", "expected"),
    [
        (MLP | {"dimensions": 3}, POINTS, {}, "model: takes points of 3 dimensions, but the data are points of 2"),
        (MLP, {"kind": "digits8"}, {}, r"takes points of 2 dimensions, but the data are 1 channel\(s\) of 8x8"),
        (TRANSFORMER, POINTS, {}, r"takes 1 channel\(s\) of 8x8, but the data are points of 2 dimensions"),
        (TRANSFORMER | {"num_classes": 9}, {"kind": "digits8"}, {}, r"model\.num_classes: found 9, expected 10"),
        (MLP, POINTS, {"flip": True}, "change images, but the data are points"),
    ],
)
def test_recipes_that_do_not_fit(
    tmp_path: Path, model: dict[str, Any], data: dict[str, Any], training: dict[str, Any], expected: str
) -> None:
    with pytest.raises(RecipeError, match=expected):
        run(recipe(model, data, {"kind": "cfm"}, **training), tmp_path)


def test_a_text_model_refuses_classes() -> None:
    model = {k: v for k, v in TRANSFORMER.items() if k != "num_classes"} | {"txt_size": 3, "txt_dim": 5}
    settings = recipe(model, {"kind": "digits8"}, {"kind": "cfm"})
    data: Dataset = load_dataset(settings.data, Path())
    with pytest.raises(
        RecipeError, match=r"model\.num_classes: found 0, expected 10, because the data have 10 classes"
    ):
        fit_data(data, settings.model)


RECIPE = """
model: {family: continuous-flow, network: mlp, dimensions: 2, channels: 8, layers: 1}
data: {kind: points, shape: moons}
objective: {kind: w-cfm, kappa: 1}
training: {steps: 10}
"""


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("objective.kappa=0", r"objective\..*kappa: found 0, expected more than 0"),
        ("objective.kapa=1", r"unknown field objective\..*kapa; did you mean kappa\?"),
        ("objective.kind=cfm", r"unknown field objective\.cfm\.kappa$"),  # which another kind has
        ("objective.kappa=-1", r"objective\..*kappa: found -1, expected more than 0"),
        ("objective.kind=sinkhorn", r"objective.*'sinkhorn'"),
        ("model.network=cnn", r"model.*'cnn'"),
        ("data.shape=spiral", r"data.*shape.*'moons'"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path: Path, override: str, expected: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    assert load_flow_recipe(path).objective is not None
    with pytest.raises(RecipeError, match=expected) as caught:
        load_flow_recipe(path, [override])
    assert "\n" not in str(caught.value)


def test_objective_belongs_to_continuous_flows(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("objective:", "# objective:"))
    with pytest.raises(RecipeError, match="objective is missing: a continuous flow needs one, of kind cfm"):
        load_flow_recipe(path)
    other = {"family": "starflow", **CLASS_MODEL}
    with pytest.raises(ValueError, match="objective is for continuous flows; a starflow maximises likelihood"):
        recipe(other, {"kind": "digits8"}, {"kind": "cfm"})


def test_another_objective_is_another_run() -> None:
    one, other, later = (
        recipe(MLP, POINTS, {"kind": "w-cfm", **settings}).model_dump(mode="json")
        for settings in ({"kappa": 1.0}, {"kappa": 2.0}, {"kappa": 1.0, "likelihood_steps": 3})
    )
    assert changed_field(one, other) == "objective.kappa (was 1.0, is 2.0)"
    assert changed_field(one, later) is None


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = CheckpointConfig.model_validate(
        {"model": TRANSFORMER, "conditioning": Conditioning(kind="class", num_classes=10)}
    )
    save_checkpoint(tmp_path / "checkpoint", config, build_flow(config.model).state_dict())
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (
            lambda t: t.pop("class_embed"),
            r"class_embed: found no such tensor, expected shape \[11, 32\]; check config.json",
        ),
        (
            lambda t: t.update(extra=torch.zeros(2)),
            r"extra: found shape \[2\], expected no such tensor; check config.json",
        ),
        (
            lambda t: t.update({"proj_in.weight": torch.zeros(32, 9)}),
            r"proj_in\.weight: found shape \[32, 9\], expected shape \[32, 4\]; check",
        ),
        (
            lambda t: t.pop("layers.1.mlp.main.0.bias"),
            r"layers\.1\.mlp\.main\.0\.bias: found no such tensor, expected shape \[128\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(checkpoint: Path, edit: Any, expected: str) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    edit(tensors)
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=expected):
        load_continuous(checkpoint)


def test_families_are_not_mistaken(checkpoint: Path, tmp_path: Path) -> None:
    assert open_checkpoint(checkpoint)[0].model.family == "continuous-flow"
    with pytest.raises(CheckpointError, match="holds a continuous-flow model, expected starflow or tarflow"):
        load_autoregressive(checkpoint)
    write_checkpoint(tmp_path / "other", class_config())
    with pytest.raises(CheckpointError, match="holds a starflow model, expected continuous-flow"):
        load_continuous(tmp_path / "other")


def test_classes_have_to_agree_with_the_conditioning() -> None:
    with pytest.raises(ValueError, match=r"conditioning\.num_classes 9 does not fit model\.num_classes"):
        CheckpointConfig.model_validate({"model": TRANSFORMER, "conditioning": {"kind": "class", "num_classes": 9}})
