"""Damaged bundles are refused with one line, or give the images of whole ones."""

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from tests.attack.byte_damage import damaged_bytes, damaged_safetensors, safetensors_data
from tests.attack.command import run_command
from tests.attack.file_damage import replace_file
from tests.attack.fuzz import Damage
from tests.attack.graph_damage import damaged_graph
from tests.attack.json_damage import damaged_json

CONDITIONS: dict[str, Any] = {
    "class": [1],
    "small": [1],
    "velocity": [1],
    "captions": ["a red apple"],
    "latents": None,
    "shapes": None,
}
VARIANTS = {"class": ("cpu-fp32", "portable-fp32", "cpu-fp16", "cpu-int8")}
SHAPES = {"shapes": ((8, 8), (4, 8))}


class Bundles:
    """Bundles of every kind, each damaged in one file."""

    name = "bundles"

    def __init__(self, artifacts: Path, kinds: tuple[str, ...]) -> None:
        self._roots = {kind: artifacts / kind / "bundle" for kind in kinds}

    def honest(self) -> dict[str, Callable[[], str]]:
        return {f"{kind} {how}": _attempt(kind, root, how) for kind, root in self._roots.items() for how in _ways(kind)}

    def damage(self, draw: Generator, folder: Path) -> Damage:
        kind = list(self._roots)[draw.integers(len(self._roots))]
        source, root = self._roots[kind], folder / "bundle"
        shutil.copytree(source, root, copy_function=os.link)
        ways = _ways(kind)
        how = ways[draw.integers(len(ways))]
        note, weights, another = damage_one_file(draw, root)
        do = _attempt(kind, root, how)
        return Damage(note, do, f"{kind} {how}", weights and "verified" not in how, another or how == "inspect")

    def left_over(self, folder: Path) -> list[str]:
        return [path.name for path in folder.iterdir() if path.name != "bundle"]


def _ways(kind: str) -> list[str]:
    """What is tried on a bundle: it is sampled, or it is shown."""
    return [*ways_to_sample(kind), "inspect"]


def ways_to_sample(kind: str) -> list[str]:
    """A variant or shape is sampled, with and without digests."""
    named = VARIANTS.get(kind, ("",))
    shapes = ["x".join(map(str, shape)) for shape in SHAPES.get(kind, ())] or [""]
    samples = [f"sample {variant}{shape}".strip() for variant in named for shape in shapes]
    return [*samples, *(f"verified {sample}" for sample in samples)]


def _attempt(kind: str, root: Path, how: str) -> Callable[[], str]:
    verified, _, what = how.rpartition("sample")

    def sample() -> str:
        from starflow.runtime.sampler import Sampler

        what_ = what.strip()
        shape = next((shape for shape in SHAPES.get(kind, ()) if what_ == "x".join(map(str, shape))), None)
        options: dict[str, Any] = {"shape": shape, "variant": None if shape else what_ or None}
        if verified and "verify" in inspect.signature(Sampler.open).parameters:
            options["verify"] = True
        with Sampler.open(root, threads=1, **options) as sampler:
            noise = np.random.default_rng(0).standard_normal((2, *sampler.noise_shape), np.float32)
            x = sampler.generate(noise, CONDITIONS[kind])
            images = sampler.to_images(x)
        return hashlib.sha256(f"{x.shape} {images.shape}".encode() + x.tobytes() + images.tobytes()).hexdigest()

    def show() -> str:
        return run_command("inspect", root).replace(str(root), "")

    return show if how == "inspect" else sample


def damage_one_file(draw: Generator, root: Path) -> tuple[str, bool, bool]:
    """Damage one file; return what was done, whether in weights alone, and whether the bundle was sealed again afterwards."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    lot = draw.random()
    if lot < 0.4:
        return _write(root / "manifest.json", *damaged_json(draw, (root / "manifest.json").read_bytes())), False, False
    if lot < 0.5:
        path = files[draw.integers(len(files))]
        folders = [path for path in root.rglob("*") if path.is_dir()]
        replaced = [path, path, path, root / "graphs"][draw.integers(4)]
        return f"{replaced.relative_to(root)}: {replace_file(draw, replaced, files + folders)}", False, False
    path = files[draw.integers(len(files))]
    content = path.read_bytes()
    weights = path.suffix == ".safetensors"
    if lot < 0.75:
        first = safetensors_data(content) if weights and draw.random() < 0.5 else 0
        changed, note = damaged_bytes(draw, content, first)
        unchanged_header = (
            changed[: safetensors_data(content)] == content[: safetensors_data(content)] if weights else False
        )
        return _write(path, changed, note), weights and unchanged_header, False
    if path.suffix == ".json":
        changed, note = damaged_json(draw, content)
    elif path.suffix == ".onnx":
        changed, note = damaged_graph(draw, content)
    elif weights:
        changed, note = damaged_safetensors(draw, content)
    else:
        changed, note = damaged_bytes(draw, content)
    note = _write(path, changed, note)
    sealed = draw.random() < 0.7 and path.name not in ("manifest.json", "build.json") and _seal(root, path)
    return f"{note}{', sealed again' if sealed else ''}", False, sealed


def _write(path: Path, content: bytes, note: str) -> str:
    path.unlink()  # a link to the whole file
    path.write_bytes(content)
    return f"{path.name}: {note}"


def _seal(root: Path, path: Path) -> bool:
    """State the size and digest of a changed file in the manifest, as who changes it on purpose would; whether it is named."""
    manifest = json.loads((root / "manifest.json").read_bytes())
    content, name = path.read_bytes(), path.relative_to(root).as_posix()
    found = [value for value in _objects(manifest) if value.get("path") == name]
    for value in found:
        value |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    content = json.dumps(manifest, indent=1).encode()
    _write(root / "manifest.json", content, "")
    if (root / "manifest.sha256").exists():
        _write(root / "manifest.sha256", f"{hashlib.sha256(content).hexdigest()}  manifest.json\n".encode(), "")
    return bool(found)


def _objects(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [value, *(each for part in value.values() for each in _objects(part))]
    return [each for part in value for each in _objects(part)] if isinstance(value, list) else []
