"""The commands that write: each in a small world of its own, where it makes an artifact or replaces one."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.attack.artifact_state import (
    State,
    bundle_state,
    imported_state,
    pictures_state,
    repository_state,
    run_state,
)
from tests.attack.command import run_command
from tests.attack.honest import starflow

RECIPE = {
    "model": {
        "family": "starflow",
        "in_channels": 1,
        "img_size": 8,
        "patch_size": 4,
        "channels": 16,
        "head_dim": 16,
        "num_blocks": 2,
        "layers_per_block": [1, 1],
        "txt_size": 0,
        "txt_dim": 0,
        "rope": True,
        "use_softplus": True,
    },
    "data": {"kind": "npz", "path": "data.npz"},
    "training": {
        "steps": 4,
        "batch_size": 8,
        "warmup_steps": 1,
        "threads": 1,
        "log_every": 2,
        "evaluate_every": 4,
        "sample_every": 2,
        "checkpoint_every": 2,
        "seed": 1,
    },
}


@dataclass(frozen=True)
class Scene:
    """One command in its world.

    Attributes:
        name: What tables call it.
        words: The command; paths are relative to the world, which is the working directory.
        fill: Makes the world.
        state: Tells which artifact is there.
        steps: Whether it makes several whole artifacts on its way, as training does.
        once: Whether the command refuses what it has made itself.
    """

    name: str
    words: tuple[str, ...]
    fill: Callable[[Path], str | None]
    state: State
    steps: bool = False
    once: bool = False

    def run(self, world: Path) -> str:
        """Run the command in a world."""
        os.chdir(world)
        return run_command(*self.words)


def _checkpoints(world: Path) -> None:
    """Two of them, of the same sizes and other weights; their matrices are just large enough to be quantised."""
    from tests.models import class_config, write_checkpoint

    config = class_config(channels=64, num_blocks=2, layers_per_block=(1, 1), head_dim=64)
    write_checkpoint(world / "checkpoint", config)
    write_checkpoint(world / "earlier", config, seed=1)


def _bundle(world: Path, of: str = "checkpoint") -> None:
    _checkpoints(world)
    starflow("export", world / of, "-o", world / "bundle", "--precision", "fp32", "fp16")


def _earlier_bundle(world: Path) -> None:
    _bundle(world, "earlier")


def _weights(world: Path) -> None:
    from tests.models import tarflow_config, write_checkpoint

    write_checkpoint(world / "source", tarflow_config())
    write_checkpoint(world / "earlier", tarflow_config(), seed=1)


def _then(fill: Callable[[Path], None], *commands: tuple[str, ...]) -> Callable[[Path], None]:
    """A world in which commands have run."""

    def filled(world: Path) -> None:
        fill(world)
        before = Path.cwd()
        os.chdir(world)
        try:
            for words in commands:
                starflow(*words)
        finally:
            os.chdir(before)

    return filled


def _data(world: Path) -> None:
    import numpy as np

    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (24, 8, 8, 1)).astype(np.uint8)
    np.savez(world / "data.npz", images=x, test_images=x[:8])
    (world / "recipe.yaml").write_text(json.dumps(RECIPE))


EXPORT = ("export", "checkpoint", "-o", "bundle", "--precision", "fp32", "fp16")
IMPORT = ("import", "source/model.safetensors", "--config", "source/config.json", "-o", "imported")
IMPORT_EARLIER = ("import", "earlier/model.safetensors", "--config", "earlier/config.json", "-o", "imported")
WEIGHTS = (
    "calibrate",
    "bundle",
    "--weights",
    "int8",
    "--images",
    "2",
    "--budget",
    "1",
    "--lowering",
    "cpu",
    "--threads",
    "1",
)
PLAN = ("calibrate", "bundle", "--plan", "--images", "2", "--budget", "0.5", "--variant", "cpu-fp32", "--threads", "1")
BUILD = ("build", "bundle", "--target", "tensorrt-rtx:8.9")
TRAIN = ("train", "recipe.yaml", "--out", "run")
TRITON = ("triton", "bundle", "-o", "repository")
SAMPLE = ("sample", "bundle", "--labels", "1,2", "--threads", "1", "--out", "images.png", "--latents", "latents.npy")

SCENES = (
    Scene("export", EXPORT, _checkpoints, bundle_state, once=True),
    Scene("export --force", (*EXPORT, "--force"), _earlier_bundle, bundle_state),
    Scene("import", IMPORT, _weights, imported_state, once=True),
    Scene("import --force", (*IMPORT, "--force"), _then(_weights, IMPORT_EARLIER), imported_state),
    Scene("calibrate --weights", WEIGHTS, _bundle, bundle_state),
    Scene("calibrate --weights again", (*WEIGHTS, "--seed", "5"), _then(_bundle, WEIGHTS), bundle_state),
    Scene("calibrate --plan", PLAN, _bundle, bundle_state),
    Scene("calibrate --plan again", PLAN, _then(_bundle, PLAN), bundle_state),
    Scene("build", BUILD, _bundle, bundle_state),
    Scene("build --force", (*BUILD, "--force"), _then(_bundle, BUILD), bundle_state),
    Scene("triton", TRITON, _bundle, repository_state, once=True),
    Scene(
        "triton --force", (*TRITON, "--force"), _then(_earlier_bundle, TRITON, (*EXPORT, "--force")), repository_state
    ),
    Scene("train", TRAIN, _data, run_state, steps=True),
    Scene("train resumed", TRAIN, _then(_data, (*TRAIN, "--max-steps", "2")), run_state, steps=True),
    Scene("train --no-resume", (*TRAIN, "--no-resume"), _then(_data, TRAIN), run_state, steps=True),
    Scene("sample", SAMPLE, _bundle, pictures_state, steps=True),
    Scene("sample again", (*SAMPLE, "--seed", "3"), _then(_bundle, SAMPLE), pictures_state, steps=True),
)


def scenes_here() -> tuple[Scene, ...]:
    """The scenes that this machine can play; engines need TensorRT RTX, which needs no GPU to build."""
    return tuple(scene for scene in SCENES if scene.words[0] != "build" or importlib.util.find_spec("tensorrt_rtx"))


def copy_world(template: Path, world: Path) -> None:
    """A fresh copy of a world."""
    shutil.rmtree(world, ignore_errors=True)
    shutil.copytree(template, world, symlinks=True)
