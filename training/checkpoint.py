"""A checkpoint: a folder of `config.json` and `model.safetensors`, written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from starflow.runtime.plain.atomic_write import atomic_folder
from starflow.runtime.plain.errors import CheckpointError, UsageError
from starflow.runtime.plain.progress import Report, no_report
from starflow.runtime.plain.validation import one_line
from starflow.training.autoencoder.folder import copy_autoencoder
from starflow.training.autoregressive.model import FlowModel
from starflow.training.autoregressive.state_check import check_tensors
from starflow.training.config import CheckpointConfig
from starflow.training.continuous.model import VelocityNetwork
from starflow.training.continuous.state_check import check_velocity_tensors
from starflow.training.flow import Flow, build_flow

AUTOENCODER = "autoencoder"  # folder of a checkpoint
SAFETENSORS_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def save_checkpoint(
    folder: str | os.PathLike[str],
    config: CheckpointConfig,
    state: Mapping[str, Tensor],
    *,
    extra_files: Mapping[str, str] | None = None,
    autoencoder: Path | None = None,
    half: bool = False,
    replace: bool = True,
    progress: Report = no_report,
) -> None:
    """Write a checkpoint folder atomically.

    One tensor at a time is converted and written, so a memory-mapped state as large as the memory is fine.

    Args:
        folder: Destination.
        config: What `build_flow` and everything downstream need to know.
        state: The model's state dict, published parameter names; number types are kept.
        extra_files: Text files to store beside it, such as recipe.yaml and metrics.json.
        autoencoder: Folder of the autoencoder whose latents the flow makes; copied as it is to `autoencoder/`.
        half: Store the tensors as float16.
        replace: Whether an existing folder gives way.
        progress: Told of every tensor.

    Raises:
        CheckpointError: a tensor is not floating-point, holds NaN or infinity, does not fit into float16, or the disk
            is full.
        UsageError: the folder exists and may not be replaced, or cannot be created.
    """
    with atomic_folder(folder, replace=replace) as temporary:
        try:
            _write_tensors(temporary / "model.safetensors", state, half=half, progress=progress)
            (temporary / "config.json").write_text(config.model_dump_json(indent=2, exclude_none=True) + "\n")
            for name, text in (extra_files or {}).items():
                (temporary / name).write_text(text)
            if autoencoder is not None:
                copy_autoencoder(autoencoder, temporary / AUTOENCODER)
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be written: {error.strerror}") from None


def _write_tensors(path: Path, state: Mapping[str, Tensor], *, half: bool, progress: Report) -> None:
    """Write a safetensors file without holding more than one tensor of it."""
    header: dict[str, dict[str, object]] = {}
    end = 0
    # Widest numbers first: every tensor then begins at a multiple of its number's size.
    names = sorted(state, key=lambda name: (-state[name].dtype.itemsize, name))
    for name in names:
        value = state[name]
        if value.dtype not in SAFETENSORS_TYPES:
            raise CheckpointError(f"{name} holds {value.dtype}; a checkpoint holds floating-point numbers")
        dtype = torch.float16 if half else value.dtype
        start, end = end, end + value.numel() * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS_TYPES[dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done, name in enumerate(names):
            file.write(_stored(name, state[name], half=half).reshape(-1).view(torch.uint8).numpy().data)
            progress(done + 1, len(names))


def _stored(name: str, value: Tensor, *, half: bool) -> Tensor:
    value = value.detach().cpu()
    if not value.isfinite().all():
        raise CheckpointError(f"{name} holds NaN or infinity; these weights are of no use")
    stored = value.half() if half else value
    if half and not stored.isfinite().all():
        raise CheckpointError(f"{name} does not fit into float16; store this checkpoint in float32")
    return stored.contiguous()


class CheckpointTensors(Mapping[str, Callable[[], NDArray[np.float32]]]):
    """A checkpoint's tensors by name: each value is a function that reads its tensor as float32.

    The file is mapped anew for every read. Mapped for good, all that was ever read would stay resident.

    Raises:
        CheckpointError: the file is damaged or truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                self._shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: damaged or truncated ({error}); copy it again") from None

    def __getitem__(self, name: str) -> Callable[[], NDArray[np.float32]]:
        if name not in self._shapes:
            raise KeyError(name)
        return lambda: self._read(name)

    def _read(self, name: str) -> NDArray[np.float32]:
        with safe_open(self.path, framework="pt") as file:
            array: NDArray[np.float32] = file.get_tensor(name).float().numpy()
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._shapes))

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def check(self, model: Flow) -> None:
        """Compare names and shapes with what `model` needs, reading no data.

        Raises:
            CheckpointError: a tensor is missing, surplus or mis-shaped.
        """
        shapes = {name: self.shape(name) for name in self}
        if isinstance(model, FlowModel):
            check_tensors(str(self.path), shapes, model)
        elif isinstance(model, VelocityNetwork):
            check_velocity_tensors(str(self.path), shapes, model)

    def load(self, model: Flow) -> dict[str, Tensor]:
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
        UsageError: there is no such folder.
        CheckpointError: a file is missing or damaged, or `config.json` is not a valid configuration.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise UsageError(f"{folder}: {found}; a checkpoint is a folder with config.json and model.safetensors")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: has no {name}; `starflow train` and `starflow import` write checkpoints")
    try:
        config = CheckpointConfig.model_validate_json((folder / "config.json").read_text())
    except (ValidationError, UnicodeDecodeError) as error:
        what = one_line(error) if isinstance(error, ValidationError) else "is not text"
        raise CheckpointError(f"{folder / 'config.json'}: {what}") from None
    return config, CheckpointTensors(folder / "model.safetensors")


def load_flow(folder: str | os.PathLike[str]) -> tuple[CheckpointConfig, Flow]:
    """Build a checkpoint's model, of either family, with its weights, in evaluation mode.

    Raises:
        CheckpointError: see `open_checkpoint` and `CheckpointTensors.check`.
    """
    config, tensors = open_checkpoint(folder)
    with torch.device("meta"):
        model = build_flow(config.model)
    model.load_state_dict(tensors.load(model), assign=True)
    return config, model.eval()


def load_model(folder: str | os.PathLike[str]) -> tuple[CheckpointConfig, FlowModel]:
    """`load_flow` for an autoregressive flow.

    Raises:
        CheckpointError: it is a continuous flow; see also `load_flow`.
    """
    config, model = load_flow(folder)
    if not isinstance(model, FlowModel):
        raise CheckpointError(f"{folder}: holds a {config.model.family} model, expected starflow or tarflow")
    return config, model


def load_velocity(folder: str | os.PathLike[str]) -> tuple[CheckpointConfig, VelocityNetwork]:
    """`load_flow` for the velocity network of a continuous flow.

    Raises:
        CheckpointError: it is an autoregressive flow; see also `load_flow`.
    """
    config, model = load_flow(folder)
    if not isinstance(model, VelocityNetwork):
        raise CheckpointError(f"{folder}: holds a {config.model.family} model, expected continuous-flow")
    return config, model
