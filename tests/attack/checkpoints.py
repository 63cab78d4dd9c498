"""Damaged checkpoints and published weights are refused with one line, or give what whole ones give."""

import hashlib
import os
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from numpy.random import Generator

from tests.attack.artifact_state import ABSENT, bundle_state, checkpoint_state, read_tree
from tests.attack.byte_damage import damaged_bytes, damaged_safetensors, safetensors_data
from tests.attack.command import run_command
from tests.attack.file_damage import replace_file
from tests.attack.fuzz import Damage
from tests.attack.json_damage import damaged_json
from tests.attack.pickle_damage import MARK, damaged_archive, hostile_content, saved
from tests.attack.yaml_damage import damaged_yaml

EXPORT = ("export", "checkpoint", "-o", "bundle")
IMPORTS = {
    "import .safetensors": (
        "import",
        "checkpoint/model.safetensors",
        "--config",
        "checkpoint/config.json",
        "-o",
        "out",
    ),
    "import .pth": ("import", "weights.pth", "--config", "checkpoint/config.json", "-o", "out"),
    "import with YAML": ("import", "weights.pth", "--config", "config.yaml", "--family", "tarflow", "-o", "out"),
}


class Checkpoints:
    """A STARFlow and a continuous flow to export, and a TARFlow in every form in which weights are published."""

    name = "checkpoints"

    def __init__(self, scratch: Path) -> None:
        self._source = scratch / "checkpoints"

    def make(self) -> str:
        """Write the whole checkpoints; run this in a child."""
        from tests.models import class_config, tarflow_config, velocity_config, write_checkpoint, write_velocity

        shutil.rmtree(self._source, ignore_errors=True)
        for name in ("export", "export continuous", *IMPORTS):
            (self._source / name).mkdir(parents=True)
        write_checkpoint(self._source / "export" / "checkpoint", class_config())
        write_velocity(self._source / "export continuous" / "checkpoint", velocity_config())
        for name in IMPORTS:
            folder = self._source / name
            model = write_checkpoint(folder / "checkpoint", tarflow_config())
            (folder / "weights.pth").write_bytes(saved(dict(model.state_dict())))
            options = {
                "img_size": 8,
                "channel_size": 1,
                "patch_size": 2,
                "channels": 32,
                "blocks": 2,
                "layers_per_block": 1,
                "head_dim": 16,
                "num_classes": 3,
            }
            (folder / "config.yaml").write_text(yaml.safe_dump(options))
        return ""

    @cached_property
    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(self._source / "import .pth" / "weights.pth", weights_only=True)
        return state

    def honest(self) -> dict[str, Callable[[], str]]:
        return {path.name: _attempt(path.name, path) for path in sorted(self._source.iterdir())}

    def damage(self, draw: Generator, folder: Path) -> Damage:
        kinds = sorted(path.name for path in self._source.iterdir())
        kind = kinds[draw.integers(len(kinds))]
        shutil.copytree(self._source / kind, folder, copy_function=os.link, dirs_exist_ok=True)
        note, weights, another = self._damage(draw, kind, folder)
        return Damage(note, _attempt(kind, folder), kind, weights, another)

    def left_over(self, folder: Path) -> list[str]:
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        return [*left, *([MARK] if os.path.exists(MARK) else [])]

    def _damage(self, draw: Generator, kind: str, folder: Path) -> tuple[str, bool, bool]:
        """Damage one of the files; return what was done, whether in weights alone, and whether it is another model now."""
        weights = folder / (
            "checkpoint/model.safetensors" if kind.startswith("export") or "safe" in kind else "weights.pth"
        )
        config = folder / ("config.yaml" if "YAML" in kind else "checkpoint/config.json")
        lot = draw.random()
        if lot < 0.08:
            paths = [weights, config, *([] if "YAML" in kind else [folder / "checkpoint"])]  # those that are read
            path = paths[draw.integers(len(paths))]
            others = [each for each in folder.rglob("*") if each != path]
            return f"{path.name}: {replace_file(draw, path, others)}", False, False
        if lot < 0.5:
            content = config.read_bytes()
            changed, note = damaged_yaml(draw, content) if config.suffix == ".yaml" else damaged_json(draw, content)
            return _write(config, changed, note), False, True
        content = weights.read_bytes()
        if weights.suffix == ".safetensors":
            if draw.random() < 0.5:
                return _write(weights, *damaged_safetensors(draw, content)), False, True
            changed, note = damaged_bytes(draw, content, safetensors_data(content) if draw.random() < 0.7 else 0)
            header = safetensors_data(content)
            return _write(weights, changed, note), changed[:header] == content[:header], False
        if draw.random() < 0.4:
            changed, note = hostile_content(draw, self._state)
            return _write(weights, changed, note), False, True
        if draw.random() < 0.15:
            changed, note = damaged_bytes(draw, saved(self._state, archive=False))
            return (
                _write(weights, changed, f"before zip archives: {note}"),
                True,
                False,
            )  # the old format has no checksums
        if draw.random() < 0.6:
            changed, note = damaged_archive(draw, content)
            with_checksums = any(
                what in note for what in ("packed", "bomb", "61 bytes")
            )  # another archive, whole by itself
            return _write(weights, changed, note), False, with_checksums
        return _write(weights, *damaged_bytes(draw, content)), False, False


def _write(path: Path, content: bytes, note: str) -> str:
    path.unlink()
    path.write_bytes(content)
    return f"{path.name}: {note}"


def _attempt(kind: str, folder: Path) -> Callable[[], str]:
    def run() -> str:
        source = folder
        os.chdir(source)
        made = source / ("bundle" if kind.startswith("export") else "out")
        shutil.rmtree(made, ignore_errors=True)
        run_command(*(EXPORT if kind.startswith("export") else IMPORTS[kind]))
        tree = read_tree(source, made.name)  # what it was made of may be no file that can be read
        state = bundle_state(tree) if made.name == "bundle" else checkpoint_state(tree, "out")
        if state == ABSENT:
            raise FileNotFoundError(made)
        return hashlib.sha256(state.encode()).hexdigest()

    return run
