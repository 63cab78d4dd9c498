"""Labels and captions, checked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starflow.runtime.plain.errors import DataError
from starflow.runtime.plain.limits import MOST_CAPTION
from starflow.training.layers.model_limits import MOST_CLASSES


def checked_labels(labels: NDArray[Any], where: str) -> Tensor:
    """Class labels as int64 [N]; DataError that begins with `where` if one is out of range."""
    lowest, highest = labels.min(), labels.max()
    if lowest < 0 or highest >= MOST_CLASSES:
        found = lowest if lowest < 0 else highest
        raise DataError(f"{where} holds {found}, expected classes from 0, and fewer than {MOST_CLASSES:,}")
    return torch.from_numpy(labels.astype(np.int64))


def checked_captions(captions: Sequence[str], where: str) -> list[str]:
    """The captions; DataError that begins with `where` if one is too long."""
    if (longest := max(map(len, captions), default=0)) > MOST_CAPTION:
        raise DataError(f"{where} holds {longest:,} characters in one, expected at most {MOST_CAPTION:,}")
    return list(captions)
