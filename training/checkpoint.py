"""A checkpoint: a folder of `config.json` and `model.safetensors`, written whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from starflow.runtime.plain.errors import CheckpointError, UsageError
from starflow.runtime.plain.folder_exchange import find_replaced
from starflow.runtime.plain.own_folder import CHECKPOINT
from starflow.runtime.plain.progress import Report, no_report
from starflow.training.autoencoder.folder import copy_autoencoder
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.config import CheckpointConfig
from starflow.training.continuous.model import ContinuousFlow
from starflow.training.families import build_flow
from starflow.training.flow import Flow
from starflow.training.frozen import read_json
from starflow.training.tensor_file import CheckpointTensors, checkpoint_folder, write_tensors

AUTOENCODER = "autoencoder"  # folder of a checkpoint


def save_checkpoint(
    folder: str | os.PathLike[str],
    config: CheckpointConfig,
    state: Mapping[str, Tensor],
    *,
    extra_files: Mapping[str, str] | None = None,
    autoencoder: Path | None = None,
    half: bool = False,
    replace: bool = True,
    source: Path | None = None,
    progress: Report = no_report,
) -> None:
    """Write a checkpoint folder atomically.

    One tensor at a time is converted and written, so a memory-mapped state as large as the memory is fine.

    Args:
        config: What `build_flow` and everything downstream need to know.
        state: The model's state dict, under the published parameter names; number types are kept.
        extra_files: Text files to store with it, such as recipe.yaml and metrics.json.
        autoencoder: Folder of the autoencoder whose latents the flow makes; copied as it is to `autoencoder/`.
        half: Store the tensors as float16.
        replace: Whether an existing checkpoint gives way.
        source: What the state is read from, which must not lie in an existing `folder`.

    Raises:
        CheckpointError: see `write_tensors`; or the disk is full.
        UsageError: the folder exists and may not be replaced, or cannot be created.
    """
    with checkpoint_folder(folder, CHECKPOINT, extra_files, replace=replace, source=source) as temporary:
        write_tensors(temporary / "model.safetensors", state, half=half, progress=progress)
        (temporary / "config.json").write_text(config.model_dump_json(indent=2, exclude_none=True) + "\n")
        if autoencoder is not None:
            copy_autoencoder(autoencoder, temporary / AUTOENCODER)


def open_checkpoint(folder: str | os.PathLike[str]) -> tuple[CheckpointConfig, CheckpointTensors]:
    """Open a checkpoint folder without reading its weights.

    Raises:
        UsageError: there is no such folder.
        CheckpointError: a file is missing or damaged, or `config.json` is not a valid configuration.
    """
    folder = Path(folder)
    find_replaced(folder)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise UsageError(f"{folder}: {found}; a checkpoint is a folder with config.json and model.safetensors")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: has no {name}; `starflow train` and `starflow import` write checkpoints")
    config = read_json(folder / "config.json", CheckpointConfig)
    return config, CheckpointTensors(folder / "model.safetensors")


def load_flow(folder: str | os.PathLike[str]) -> tuple[CheckpointConfig, Flow]:
    """Build a checkpoint's model, of either family, with its weights, to be evaluated, or CheckpointError."""
    config, tensors = open_checkpoint(folder)
    with torch.device("meta"):
        model = build_flow(config.model)
    model.load_state_dict(tensors.load(model), assign=True)
    return config, model.eval()


def load_autoregressive(folder: str | os.PathLike[str]) -> tuple[CheckpointConfig, AutoregressiveFlow]:
    """`load_flow` for an autoregressive flow; CheckpointError if it is a continuous one."""
    config, model = load_flow(folder)
    if not isinstance(model, AutoregressiveFlow):
        raise CheckpointError(f"{folder}: holds a {config.model.family} model, expected starflow or tarflow")
    return config, model


def load_continuous(folder: str | os.PathLike[str]) -> tuple[CheckpointConfig, ContinuousFlow]:
    """`load_flow` for a continuous flow; CheckpointError if it is an autoregressive one."""
    config, model = load_flow(folder)
    if not isinstance(model, ContinuousFlow):
        raise CheckpointError(f"{folder}: holds a {config.model.family} model, expected continuous-flow")
    return config, model
