"""Damaged recipes, and the data they name, are refused with one line, or train."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from tests.attack.artifact_state import ABSENT, checkpoint_state, read_tree
from tests.attack.byte_damage import damaged_bytes
from tests.attack.command import run_command
from tests.attack.file_damage import replace_file
from tests.attack.fuzz import Damage
from tests.attack.scenes import RECIPE
from tests.attack.yaml_damage import damaged_yaml

TRAINING: dict[str, Any] = {
    "steps": 2,
    "batch_size": 8,
    "warmup_steps": 1,
    "threads": 1,
    "evaluate_every": 1,
    "sample_every": 2,
    "checkpoint_every": 2,
}
DATA = {"kind": "npz", "path": "data.npz"}
RECIPES: dict[str, dict[str, Any]] = {
    "flow": RECIPE,
    "continuous flow": {
        "model": {"family": "continuous-flow", "network": "mlp", "dimensions": 2, "channels": 16, "layers": 1},
        "data": {"kind": "points", "shape": "moons", "count": 64},
        "objective": {
            "kind": "w-cfm",
            "kappa": 0.5,
            "normalise": "running",
            "likelihood_steps": 2,
            "likelihood_samples": 8,
        },
        "training": TRAINING,
    },
    "autoencoder": {
        "autoencoder": {
            "kind": "tiny",
            "latent_channels": 1,
            "encoder_block_out_channels": [8, 8],
            "decoder_block_out_channels": [8, 8],
            "num_encoder_blocks": [1, 1],
            "num_decoder_blocks": [1, 1],
        },
        "data": DATA,
        "objective": {"noise_std": 0.1},
        "training": TRAINING,
    },
}
ARRAYS = ("images", "test_images", "labels", "test_labels")


class Recipes:
    """A recipe of every kind, each trained for a step."""

    name = "recipes"

    def __init__(self, scratch: Path, kinds: tuple[str, ...]) -> None:
        self._source, self._kinds = scratch / "recipes", kinds

    def make(self) -> str:
        """Write the whole recipes and their data; run this in a child."""
        shutil.rmtree(self._source, ignore_errors=True)
        for name in self._kinds:
            folder = self._source / name
            folder.mkdir(parents=True)
            (folder / "recipe.yaml").write_text(json.dumps(RECIPES[name], indent=1))
            if name != "continuous flow":
                np.savez(folder / "data.npz", **_arrays())
        return ""

    def honest(self) -> dict[str, Callable[[], str]]:
        return {path.name: _attempt(path) for path in sorted(self._source.iterdir())}

    def damage(self, draw: Generator, folder: Path) -> Damage:
        kinds = sorted(path.name for path in self._source.iterdir())
        kind = kinds[draw.integers(len(kinds))]
        shutil.copytree(self._source / kind, folder, copy_function=os.link, dirs_exist_ok=True)
        recipe, data = folder / "recipe.yaml", folder / "data.npz"
        lot = draw.random()
        if lot < 0.06:
            path = data if data.exists() and draw.random() < 0.5 else recipe
            note = f"{path.name}: {replace_file(draw, path, [recipe, folder])}"
        elif lot < 0.3 and data.exists():
            note = f"data.npz: {_damage_data(draw, data)}"
        else:
            content, note = damaged_yaml(draw, recipe.read_bytes())
            recipe.unlink()
            recipe.write_bytes(content)
        return Damage(note, _attempt(folder), kind, another=True)

    def left_over(self, folder: Path) -> list[str]:
        return [path.name for path in folder.rglob(".*") if not path.name.endswith(".lock")]


def _arrays() -> dict[str, Any]:
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1)).astype(np.uint8)
    return {"images": images, "test_images": images[:8]}


def _damage_data(draw: Generator, path: Path) -> str:
    content = path.read_bytes()
    path.unlink()
    if draw.random() < 0.4:
        changed, note = damaged_bytes(draw, content)
        path.write_bytes(changed)
        return note
    arrays = _arrays()
    name = ARRAYS[draw.integers(len(ARRAYS))]
    images = arrays["images"]
    others: list[Any] = [
        *(
            np.zeros(0, np.uint8),
            np.zeros((0, 8, 8, 1), np.uint8),
            np.uint8(3),
            images.astype(np.float32),
            images[:, :4],
        ),
        *(
            images[..., 0],
            images.astype(">u2"),
            images[0],
            np.array(["a"] * 24),
            np.zeros(24, np.int64),
            -np.ones(24, np.int64),
        ),
        *(np.full(24, 2**40), np.zeros(24, np.float32), np.zeros(24, bool), np.zeros(24, np.uint64) + np.uint64(2**63)),
        *(
            np.zeros((24, 8, 8, 5), np.uint8),
            np.array([{}], object),
            np.zeros((24, 1), np.int64),
            np.zeros((1,) * 30, np.uint8),
        ),
    ]
    index = int(draw.integers(len(others)))
    np.savez(path, **{**arrays, name: others[index]})
    return f"{name} of {np.asarray(others[index]).dtype}, shape {np.shape(others[index])}"


def _attempt(folder: Path) -> Callable[[], str]:
    def run() -> str:
        os.chdir(folder)
        shutil.rmtree("run", ignore_errors=True)
        run_command("train", "recipe.yaml", "--out", "run", "--max-steps", "1")
        tree = read_tree(folder, "run")
        if "run/checkpoint/model.safetensors" in tree:
            state = checkpoint_state(tree, "run/checkpoint")
        else:
            weights = "run/checkpoint/diffusion_pytorch_model.safetensors"
            state = hashlib.sha256(tree[weights]).hexdigest() if weights in tree else ABSENT
        if state == ABSENT:
            raise FileNotFoundError("run/checkpoint")
        return state

    return run
