"""Data whose activations are looked at before a 16-bit export: one NumPy archive."""

import zipfile
from pathlib import Path

import numpy as np
import torch

from starflow.export.autoregressive.activation_check import ActivationData
from starflow.runtime.plain.errors import UsageError


def load_activation_data(path: Path) -> ActivationData:
    """Read `x` and, where there is one, `condition` from an .npz file.

    Raises:
        UsageError: it is no such file, or an array is not of numbers.
    """
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: is not a readable .npz file ({error})") from None
    unknown = sorted(set(arrays) - {"x", "condition"})
    if "x" not in arrays or unknown:
        raise UsageError(f"{path}: holds {sorted(arrays)}; give x [N, C, H, W] and, for conditioned models, condition")
    if any(array.dtype.kind not in "fiu" or not np.isfinite(array).all() for array in arrays.values()):
        raise UsageError(f"{path}: its arrays must hold finite numbers")
    condition = arrays.get("condition")
    if condition is not None:
        condition = condition.astype(np.int64 if condition.dtype.kind in "iu" else np.float32)
    return ActivationData(
        x=torch.from_numpy(arrays["x"].astype(np.float32)),
        condition=None if condition is None else torch.from_numpy(condition),
    )
