"""Data whose activations are looked at before a 16-bit export: one NumPy archive."""

from pathlib import Path

import numpy as np
import torch

from starflow.export.autoregressive.activation_check import ActivationData
from starflow.runtime.plain.input_files import load_data


def load_activation_data(path: Path) -> ActivationData:
    """Read `x` and, where there is one, `condition` from an .npz file.

    Raises:
        UsageError: there is no such file, or its arrays are not finite numbers.
    """
    x, condition = load_data(path)
    if condition is not None:
        condition = condition.astype(np.int64 if condition.dtype.kind in "iu" else np.float32)
    return ActivationData(
        x=torch.from_numpy(x.astype(np.float32)),
        condition=None if condition is None else torch.from_numpy(condition),
    )
