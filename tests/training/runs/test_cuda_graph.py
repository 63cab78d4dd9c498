"""A recorded training step is the same step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from starflow.training.config import ModelConfig
from starflow.training.data.dataset import load_dataset
from starflow.training.data.source import Digits8Source
from starflow.training.families import build_flow
from starflow.training.recipe import Recipe
from starflow.training.trainer import Trainer

MODEL = {"in_channels": 1, "img_size": 8, "patch_size": 2, "channels": 32, "head_dim": 16}
STARFLOW = MODEL | {"family": "starflow", "num_blocks": 2, "layers_per_block": [1, 2], "txt_size": 1, "txt_dim": 11}
STARFLOW |= {"cond_top_only": True, "rope": True, "sos": True, "use_softplus": True}
TEXT = STARFLOW | {"txt_size": 3, "txt_dim": 5, "block_patch_sizes": [2, [2, 4]]}
TARFLOW = MODEL | {"family": "tarflow", "num_blocks": 2, "layers_per_block": 1, "num_classes": 10, "nvp": False}
VELOCITY = MODEL | {"family": "continuous-flow", "network": "transformer", "layers": 2, "num_classes": 10}
WEIGHTED = {"kind": "w-cfm", "kappa": 0.5, "cost": "squared", "marginals": "learned", "potential_steps": 3}


def prepared(model: dict[str, Any], folder: Path, **training: Any) -> Trainer:
    settings = {
        "steps": 12,
        "batch_size": 64,
        "warmup_steps": 5,
        "learning_rate": 1e-3,
        "device": "cuda",
        "evaluate_every": 12,
    } | training
    sections: dict[str, Any] = {"model": model, "data": {"kind": "digits8"}, "training": settings}
    if model["family"] == "continuous-flow":
        sections["objective"] = WEIGHTED
    recipe = Recipe.model_validate(sections)
    return Trainer(recipe, load_dataset(Digits8Source(kind="digits8"), folder), folder)


def trained(model: dict[str, Any], folder: Path, **training: Any) -> Trainer:
    trainer = prepared(model, folder, **training)
    trainer.fit()
    return trainer


def figures(trainer: Trainer) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step."""
    entries = [json.loads(line) for line in (trainer.folder / "log.jsonl").read_text().splitlines()]
    return [(entry["loss"], entry["gradient_norm"]) for entry in entries if "loss" in entry]


class Seen(TorchDispatchMode):
    """Records the operations with a tensor on the CPU, and those that wait for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors) or "_local_scalar_dense" in str(func):
            self.found.add(str(func))
        return out


@pytest.mark.parametrize("model", [STARFLOW, TEXT, TARFLOW, VELOCITY], ids=["classes", "text", "tarflow", "velocity"])
def test_a_pass_stays_on_its_device(model: dict[str, Any]) -> None:
    """A copy from the CPU would wait for all that is queued on a GPU, and cannot be recorded. Meta tensors stand for a GPU."""
    config: ModelConfig = TypeAdapter(ModelConfig).validate_python(model)
    labels = torch.zeros(2, dtype=torch.int64, device="meta")
    with torch.device("meta"):
        flow, x, text = build_flow(config), torch.empty(2, 1, 8, 8), torch.empty(2, 3, 5)
    y = text if model is TEXT else flow.encode_labels(labels)
    with Seen() as seen:
        out = flow(x, torch.empty(2, device="meta"), y) if model is VELOCITY else flow(x, y).loss
        out.sum().backward()
    assert not seen.found


@pytest.mark.gpu
@pytest.mark.parametrize("model", [STARFLOW, TARFLOW, VELOCITY], ids=lambda model: model["family"])
def test_recorded_steps_are_the_same_steps(tmp_path: Path, model: dict[str, Any]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    plain = trained(model, tmp_path / "plain")
    recorded = trained(model, tmp_path / "recorded", cuda_graph=True)
    assert len(figures(plain)) == 12
    for one, other in zip(figures(plain), figures(recorded), strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    bits = plain.metrics["test_bits_per_dim"]
    assert recorded.metrics["test_bits_per_dim"] == pytest.approx(bits, abs=1e-3)
    torch.testing.assert_close(
        dict(recorded.model.named_buffers()), dict(plain.model.named_buffers()), rtol=0, atol=1e-4
    )


@pytest.mark.gpu
def test_dropout_draws_anew_in_every_recorded_step(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    trainer = prepared(STARFLOW, tmp_path, cuda_graph=True, feed_forward_dropout=0.5, precision="bf16")
    for block in trainer.model.get_submodule("blocks").children():
        torch.nn.init.normal_(
            block.get_parameter("proj_out.weight"), std=0.02
        )  # zero at first, whatever dropout leaves out
    x, y = trainer.prepare(trainer.batch_at(0), torch.Generator("cuda").manual_seed(0))
    found = []
    for seed in (1, 2, 1):  # the first call records
        torch.manual_seed(seed)
        out = trainer.forward(x, y)
        found.append(float(out.loss.detach()))
        out.loss.backward()
    assert found[0] == found[2] != found[1]
