"""Which artifact lies in a folder, and whether it is whole: read without starflow, from names, sizes and digests alone."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tree = dict[str, bytes]  # files by their paths from the root; a folder's path ends with a slash and holds nothing
State = Callable[[Tree], str]
ABSENT = "absent"
# In names of what is made again beside what is there: cpu-int8.2.onnx, block0-8e1a2ae8eb4f-2.engine.
FREE_NUMBER = re.compile(r"(?<=-int8)\.\d+(?=\.\w+$)|(?<=-[0-9a-f]{12})-\d+(?=\.\w+$)")
CALIBRATED_GRAPH = re.compile(r"-int8\.onnx$")


class BrokenArtifactError(Exception):
    """What lies there is not a whole artifact."""


def read_tree(root: Path, part: str = "") -> Tree:
    """Everything below a folder, or below a part of it that need not exist; names start at the folder."""
    tree: Tree = {}
    for path in sorted((root / part).rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink() or path.is_file():
            tree[name] = path.read_bytes()
        else:
            tree[f"{name}/"] = b""
    return tree


def names(tree: Tree) -> set[str]:
    """The names in a tree, without the time in those of TensorBoard's files and the numbers of what is made again."""
    return {FREE_NUMBER.sub("", re.sub(r"events\.out\.tfevents.*", "events", name)) for name in tree}


def signature(tree: Tree) -> str:
    """What the next run may find: every name and content, except how much of a temporary file is written."""
    parts: dict[str, str] = {}
    for name, content in tree.items():
        temporary = re.search(r"(^|/)\.[^/]*\.[0-9a-f]{8}(/|$)", name)
        kept = f"{bool(content)}" if temporary else hashlib.sha256(content).hexdigest()
        parts[re.sub(r"\.[0-9a-f]{8}(/|$)", r".*\1", name)] = kept
    return _digest(sorted(parts.items()))


def below(tree: Tree, folder: str) -> Tree:
    """The part of a tree that lies in a folder."""
    return {name.removeprefix(f"{folder}/"): content for name, content in tree.items() if name.startswith(f"{folder}/")}


def bundle_state(tree: Tree) -> str:
    """The bundle in `bundle/`: its named files with their digests, its plans, and where it has engines.

    A calibration writes under free names, `cpu-int8.2` beside `cpu-int8`, and its graphs name their weights; so the numbers are
    left out, and the digests of these graphs.

    Raises:
        BrokenArtifactError: it lacks a file that the manifest or a build record names, or a file is another one.
    """
    files = below(tree, "bundle")
    if not files:
        return ABSENT
    if "manifest.json" not in files:
        raise BrokenArtifactError(f"no manifest among {sorted(files)[:5]}")
    manifest = _document(files, "manifest.json")
    recorded = files.get("manifest.sha256")
    if recorded is not None and hashlib.sha256(files["manifest.json"]).hexdigest() not in recorded.decode():
        raise BrokenArtifactError("manifest.sha256 names another manifest")
    found = {FREE_NUMBER.sub("", file["path"]): file["sha256"] for file in _files(manifest)}
    named = {path: "" if CALIBRATED_GRAPH.search(path) else digest for path, digest in found.items()}
    plans = [f"{plan['backend']} {plan['variant']}" for plan in manifest.get("plans", ())]
    built = []
    for name in sorted(files):
        if name.endswith("/build.json"):
            record = _document(files, name)
            for file in _files(record):
                _check(files, file, name)
            built.append(f"{name}: {len(record['engines'])}")
    for file in _files(manifest):
        _check(files, file, "manifest.json")
    return _digest([sorted(named.items()), plans, built])


def repository_state(tree: Tree) -> str:
    """The repository for Triton in `repository/`: its models, each with its configuration and a whole bundle.

    Raises:
        BrokenArtifactError: it lacks the file by which it is recognised or one of a model, or a bundle is not whole.
    """
    files = below(tree, "repository")
    if not files:
        return ABSENT
    if "starflow.json" not in files:
        raise BrokenArtifactError(f"no starflow.json among {sorted(files)[:5]}")
    found = []
    for model in _document(files, "starflow.json")["triton_models"]:
        for name in ("config.pbtxt", "1/model.py"):
            if not files.get(f"{model}/{name}"):
                raise BrokenArtifactError(f"{model}: has no {name}")
        bundle = bundle_state(below(files, f"{model}/1"))
        if bundle == ABSENT:
            raise BrokenArtifactError(f"{model}: has no bundle")
        found.append((model, bundle))
    return _digest(found)


def checkpoint_state(tree: Tree, folder: str = "checkpoint") -> str:
    """The checkpoint in a folder: all of its content.

    Raises:
        BrokenArtifactError: it lacks one of its two files, or its weights are truncated.
    """
    files = below(tree, folder)
    if not files:
        return ABSENT
    for name in ("config.json", "model.safetensors"):
        if name not in files:
            raise BrokenArtifactError(f"{folder}: no {name} among {sorted(files)[:5]}")
    _document(files, "config.json")
    weights = files["model.safetensors"]
    length = int.from_bytes(weights[:8], "little")
    ends = [
        entry["data_offsets"][1]
        for name, entry in json.loads(weights[8 : 8 + length]).items()
        if name != "__metadata__"
    ]
    if max(ends) != len(weights) - 8 - length:
        raise BrokenArtifactError(f"{folder}: weights of {len(weights)} bytes, expected {8 + length + max(ends)}")
    return _digest([(name, hashlib.sha256(content).hexdigest()) for name, content in sorted(files.items())])


def imported_state(tree: Tree) -> str:
    """The checkpoint in `imported/`."""
    return checkpoint_state(tree, "imported")


def run_state(tree: Tree) -> str:
    """The training run in `run/`: its checkpoint, and that the state to resume from is a whole zip archive."""
    state = tree.get("run/state.pt")
    if state is not None and b"PK\x05\x06" not in state[-64:]:
        raise BrokenArtifactError("state.pt is cut off")
    return checkpoint_state(tree, "run/checkpoint")


def pictures_state(tree: Tree) -> str:
    """The files that `sample` writes: a whole PNG and a whole array, or none; each by itself."""
    picture, array = tree.get("images.png"), tree.get("latents.npy")
    if picture is not None and not picture.endswith(b"IEND\xaeB`\x82"):
        raise BrokenArtifactError("images.png is cut off")
    if array is not None and len(array) != 128 + 2 * 64 * 4:
        raise BrokenArtifactError("latents.npy is cut off")
    return _digest([hashlib.sha256(content or b"").hexdigest() for content in (picture, array)])


def _document(files: Tree, name: str) -> Any:
    try:
        return json.loads(files[name])
    except ValueError as error:
        raise BrokenArtifactError(f"{name}: {error}") from None


def _files(value: Any) -> list[dict[str, Any]]:
    """Every file that a document names with a digest."""
    if isinstance(value, dict):
        own = [value] if {"path", "bytes", "sha256"} <= value.keys() else []
        return own + [file for part in value.values() for file in _files(part)]
    return [file for part in value for file in _files(part)] if isinstance(value, list) else []


def _check(files: Tree, file: dict[str, Any], document: str) -> None:
    if file["path"] not in files:
        raise BrokenArtifactError(f"{document} names {file['path']}, which is missing")
    if hashlib.sha256(files[file["path"]]).hexdigest() != file["sha256"]:
        raise BrokenArtifactError(f"{document} names {file['path']}, whose content is another one")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
