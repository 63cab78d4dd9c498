"""Published weights files, `.pth` and `.safetensors`: memory-mapped, and without running any code in them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from starflow.runtime.plain.errors import CheckpointError, UsageError
from starflow.runtime.plain.regular_file import NotRegularError, check_regular
from starflow.training.published.pickled_tensors import DamagedPickleError, ForeignNameError
from starflow.training.published.torch_file import read_torch_file
from starflow.training.tensor_file import check_digest

# Keys under which training scripts save the state dict, and what wrappers put in front of its names.
WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
PREFIXES = ("module.", "_orig_mod.")


def open_weights(path: Path) -> dict[str, Tensor]:
    """Open a `.safetensors` file, or a file of `torch.save`; data are read from disk when they are used.

    A file of `torch.save` holds a state dict, or one under a key of `WRAPPERS`; see `read_torch_file`. A `.safetensors` file
    that starflow wrote is compared with its digest.

    Returns:
        Name -> tensor on the CPU, without the prefixes of DistributedDataParallel and torch.compile.

    Raises:
        UsageError: there is no such file.
        CheckpointError: the file is damaged, holds code, or holds no state dict.
    """
    try:
        check_regular(path)
    except FileNotFoundError:
        raise UsageError(f"{path}: does not exist; name a .pth or .safetensors file") from None
    except NotRegularError as error:
        raise UsageError(f"{path}: {error.strerror}; name a .pth or .safetensors file") from None
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return _without_prefixes(path, _state_dict(path, content))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        check_digest(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a safetensors file, or damaged ({_first_line(error)}); fetch it again"
        ) from None


def _read_torch(path: Path) -> object:
    try:
        return read_torch_file(path)
    except ForeignNameError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors ({error}); it was refused and nothing in it was run: "
            "save the state dict alone, or as .safetensors"
        ) from None
    except (DamagedPickleError, ValueError, OSError) as error:
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
