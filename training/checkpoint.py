"""A checkpoint: a folder of `config.json` and `model.safetensors`, written whole or not at all."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from starflow.runtime.atomic_write import atomic_folder
from starflow.runtime.errors import CheckpointError
from starflow.runtime.validation import one_line
from starflow.training.config import CheckpointConfig
from starflow.training.model import FlowModel, build_model
from starflow.training.state_check import check_tensors


def save_checkpoint(
    folder: str | os.PathLike[str],
    config: CheckpointConfig,
    state: Mapping[str, Tensor],
    *,
    extra_files: Mapping[str, str] | None = None,
    half: bool = False,
    replace: bool = True,
) -> None:
    """Write a checkpoint folder atomically.

    Args:
        folder: Destination.
        config: What `build_model` and everything downstream need to know.
        state: The model's state dict, published parameter names.
        extra_files: Text files to store beside it, such as recipe.yaml and metrics.json.
        half: Store floating-point tensors as float16.
        replace: Whether an existing folder gives way.
    """
    with atomic_folder(folder, replace=replace) as temporary:
        tensors = {
            name: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
            for name, value in state.items()
        }
        if half and (name := next((n for n, v in tensors.items() if not v.isfinite().all()), None)):
            raise CheckpointError(f"{name} does not fit into float16; store this checkpoint in float32")
        save_file(tensors, temporary / "model.safetensors")
        (temporary / "config.json").write_text(config.model_dump_json(indent=2, exclude_none=True) + "\n")
        for name, text in (extra_files or {}).items():
            (temporary / name).write_text(text)


class CheckpointTensors(Mapping[str, Callable[[], NDArray[np.float32]]]):
    """A checkpoint's tensors by name, memory-mapped: each value is a function that reads its tensor as float32.

    Raises:
        CheckpointError: the file is damaged or truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: damaged or truncated ({error}); copy it again") from None
        self._names = frozenset(self._file.keys())

    def __getitem__(self, name: str) -> Callable[[], NDArray[np.float32]]:
        if name not in self._names:
            raise KeyError(name)
        return lambda: self._file.get_tensor(name).float().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def check(self, model: FlowModel) -> None:
        """Compare names and shapes with what `model` needs, reading no data.

        Raises:
            CheckpointError: a tensor is missing, surplus or mis-shaped.
        """
        check_tensors(str(self.path), {name: self.shape(name) for name in self}, model)

    def load(self, model: FlowModel) -> dict[str, Tensor]:
        """The state dict of `model`, float32; buffers nothing needs are left out."""
        self.check(model)
        expected = model.state_dict()
        return {name: torch.from_numpy(self[name]()) for name in self if name in expected}

    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def open_checkpoint(folder: str | os.PathLike[str]) -> tuple[CheckpointConfig, CheckpointTensors]:
    """Open a checkpoint folder without reading its weights.

    Raises:
        CheckpointError: a file is missing or damaged, or `config.json` is not a valid configuration.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(f"{folder}: {found}; a checkpoint is a folder with config.json and model.safetensors")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: has no {name}; `starflow train` and `starflow import` write checkpoints")
    try:
        config = CheckpointConfig.model_validate_json((folder / "config.json").read_text())
    except (ValidationError, UnicodeDecodeError) as error:
        what = one_line(error) if isinstance(error, ValidationError) else "is not text"
        raise CheckpointError(f"{folder / 'config.json'}: {what}") from None
    return config, CheckpointTensors(folder / "model.safetensors")


def load_model(folder: str | os.PathLike[str]) -> tuple[CheckpointConfig, FlowModel]:
    """Build a checkpoint's model with its weights, in evaluation mode.

    Raises:
        CheckpointError: see `open_checkpoint` and `CheckpointTensors.check`.
    """
    config, tensors = open_checkpoint(folder)
    with torch.device("meta"):
        model = build_model(config.model)
    model.load_state_dict(tensors.load(model), assign=True)
    return config, model.eval()
