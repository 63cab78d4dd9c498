"""A recorded training step is the same step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from starflow.training.data.dataset import load_dataset
from starflow.training.data.source import Digits8Source
from starflow.training.recipe import Recipe
from starflow.training.trainer import Trainer

MODEL = {"in_channels": 1, "img_size": 8, "patch_size": 2, "channels": 32, "head_dim": 16}
STARFLOW = MODEL | {"family": "starflow", "num_blocks": 2, "layers_per_block": [1, 2], "txt_size": 1, "txt_dim": 11}
STARFLOW |= {"cond_top_only": True, "rope": True, "sos": True, "use_softplus": True}
TARFLOW = MODEL | {"family": "tarflow", "num_blocks": 2, "layers_per_block": 1, "num_classes": 10, "nvp": False}
VELOCITY = MODEL | {"family": "continuous-flow", "network": "transformer", "layers": 2, "num_classes": 10}
WEIGHTED = {"kind": "w-cfm", "kappa": 0.5, "cost": "squared", "marginals": "learned", "potential_steps": 3}


def trained(model: dict[str, Any], folder: Path, **training: Any) -> Trainer:
    settings = {"steps": 12, "batch_size": 64, "warmup_steps": 5, "learning_rate": 1e-3, "device": "cuda"} | training
    sections: dict[str, Any] = {"model": model, "data": {"kind": "digits8"}, "training": settings}
    if model["family"] == "continuous-flow":
        sections["objective"] = WEIGHTED
    recipe = Recipe.model_validate(sections)
    trainer = Trainer(recipe, load_dataset(Digits8Source(kind="digits8"), folder), folder)
    trainer.fit()
    return trainer


def distance(one: Trainer, other: Trainer) -> float:
    """The largest difference of a weight."""
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.gpu
@pytest.mark.parametrize("model", [STARFLOW, TARFLOW, VELOCITY], ids=lambda model: model["family"])
def test_recorded_steps_end_at_the_same_weights(tmp_path: Path, model: dict[str, Any]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    plain = trained(model, tmp_path / "plain")
    recorded = trained(model, tmp_path / "recorded", cuda_graph=True)
    assert distance(plain, recorded) < 1e-4
    torch.testing.assert_close(
        dict(recorded.model.named_buffers()), dict(plain.model.named_buffers()), rtol=0, atol=1e-4
    )


@pytest.mark.gpu
def test_dropout_draws_anew_in_every_recorded_step(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    settings = {"cuda_graph": True, "feed_forward_dropout": 0.5, "precision": "bf16", "learning_rate": 1e-12}
    trainer = trained(STARFLOW, tmp_path, **settings)
    x, y = trainer.prepare(trainer.batch_at(0), torch.Generator("cuda").manual_seed(0))
    found = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        out = trainer.forward(x, y)
        found.append(float(out.loss))
        out.loss.backward()
    assert found[0] == found[2] != found[1]
