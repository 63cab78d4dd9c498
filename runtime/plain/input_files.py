"""Arrays and captions from files that a user names."""

from pathlib import Path
from typing import Any

from starflow.runtime.plain.errors import UsageError


def load_captions(path: Path) -> list[str]:
    """Captions from a text file, one a line; empty lines are left out.

    Raises:
        UsageError: it cannot be read, or holds none.
    """
    try:
        captions = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"{path}: cannot be read as captions: {reason}") from None
    if not captions:
        raise UsageError(f"{path}: holds no captions; write one a line")
    return captions


def load_array(path: Path) -> Any:
    """An array from a .npy file.

    Raises:
        UsageError: it is missing or none.
    """
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(f"{path}: does not exist; name a .npy file") from None
    except (ValueError, OSError, EOFError):
        raise UsageError(f"{path}: is not a .npy array of numbers") from None
