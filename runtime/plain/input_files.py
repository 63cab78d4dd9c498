"""Arrays and captions from files that a user names."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.plain.array_file import NUMBERS, read_archive, read_array
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.limits import MOST_CAPTION
from starflow.runtime.plain.text_lines import text_lines


def load_captions(path: Path) -> list[str]:
    """Captions from a text file, one per line; empty lines are left out.

    Raises:
        UsageError: the file cannot be read, or holds no captions.
    """
    try:
        # A line may hold what ends a line in other alphabets.
        parts = (part.strip() for line in text_lines(path, MOST_CAPTION) for part in line.splitlines())
        captions = [part for part in parts if part]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"{path}: cannot be read as captions: {reason}") from None
    if not captions:
        raise UsageError(f"{path}: holds no captions; write one per line")
    return captions


def load_array(path: Path) -> Any:
    """An array from a .npy file.

    Raises:
        UsageError: there is no such file, or it holds no array of numbers.
    """
    try:
        return read_array(path)
    except FileNotFoundError:
        raise UsageError(f"{path}: does not exist; name a .npy file") from None
    except (ValueError, OSError) as error:
        raise UsageError(f"{path}: is not a .npy array of numbers: {_reason(error)}") from None


def load_data(path: Path) -> tuple[NDArray, NDArray | None]:
    """`x` [N, C, H, W] and, where there is one, `condition` (class ids [N], or features [N, m, width]) from an .npz file.

    Raises:
        UsageError: there is no such file, it holds other arrays, or values that are not finite numbers.
    """
    try:
        arrays = read_archive(path, NUMBERS)
    except FileNotFoundError:
        raise UsageError(f"{path}: does not exist; name an .npz file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: is not an .npz file of numbers: {_reason(error)}") from None
    if "x" not in arrays or not set(arrays) <= {"x", "condition"}:
        raise UsageError(f"{path}: holds {sorted(arrays)}; give x [N, C, H, W] and, for conditioned models, condition")
    if any(array.dtype.kind not in "fiu" or not np.isfinite(array).all() for array in arrays.values()):
        raise UsageError(f"{path}: its arrays must hold finite numbers")
    return arrays["x"], arrays.get("condition")


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
