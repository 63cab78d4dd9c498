"""Published weights files, `.pth` and `.safetensors`: memory-mapped, and without running any code in them."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from starflow.runtime.plain.errors import CheckpointError, UsageError

# Keys under which training scripts save the state dict, and what wrappers put in front of its names.
WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
PREFIXES = ("module.", "_orig_mod.")


def open_weights(path: Path) -> dict[str, Tensor]:
    """Open a `.safetensors` file, or a file of `torch.save`; data are read from disk when they are used.

    A file of `torch.save` holds a state dict, or one under a key of `WRAPPERS`. PyTorch's restricted unpickler reads it,
    which makes tensors and plain containers and refuses everything else. A file from before PyTorch 1.6 cannot be mapped
    and is read whole.

    Returns:
        Name -> tensor on the CPU, without the prefixes of DistributedDataParallel and torch.compile.

    Raises:
        UsageError: there is no such file.
        CheckpointError: the file is damaged, holds code, or holds no state dict.
    """
    if not path.is_file():
        found = "is a folder" if path.exists() else "does not exist"
        raise UsageError(f"{path}: {found}; name a .pth or .safetensors file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return _without_prefixes(path, _state_dict(path, content))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a safetensors file, or damaged ({_first_line(error)}); fetch it again"
        ) from None


def _read_torch(path: Path) -> object:
    try:
        with path.open("rb") as file:
            mappable = file.read(2) == b"PK"  # a zip archive; older files are bare pickles
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the restricted unpickler warns of what it is going to refuse
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds more than tensors ({found[1]})" if found else "not a file of tensors, or damaged"
        raise CheckpointError(
            f"{path}: {what}; it was refused and nothing in it was run: save the state dict alone, or as .safetensors"
        ) from None
    except Exception as error:  # torch reports damage by many types
        raise CheckpointError(
            f"{path}: not a PyTorch file, or damaged ({_first_line(error)}); fetch it again"
        ) from None


def _first_line(error: Exception) -> str:
    text = str(error).partition("\n")[0].partition(". ")[0]
    return text or type(error).__name__


def _state_dict(path: Path, content: object) -> Mapping[str, Tensor]:
    for candidate in (content, *(content.get(key) for key in WRAPPERS if isinstance(content, Mapping))):
        if _is_state_dict(candidate):
            return candidate  # type: ignore[return-value]
    if isinstance(content, Mapping):
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        found = f"a dictionary of {keys}{', ...' if len(content) > 5 else ''}"
    else:
        found = type(content).__name__
    raise CheckpointError(f"{path}: holds {found}; expected a state dict, or one under {', '.join(WRAPPERS)}")


def _is_state_dict(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())


def _without_prefixes(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bare: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = name
        while prefix := next((prefix for prefix in PREFIXES if short.startswith(prefix)), None):
            short = short.removeprefix(prefix)
        if short in bare:
            raise CheckpointError(f"{path}: two tensors are {short} without the prefixes {', '.join(PREFIXES)}")
        bare[short] = tensor
    return bare
