"""The number types a bundle is written in."""

from collections.abc import Collection
from typing import Literal

import ml_dtypes
import numpy as np

from starflow.runtime.bundle.manifest import Lowering

Precision = Literal["fp32", "fp16", "bf16"]
TextPrecision = Literal["fp32", "fp16"]
DTYPES: dict[Precision, np.dtype] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}


def lowerings(precision: Precision, wanted: Collection[Lowering]) -> tuple[Lowering, ...]:
    """Those of the wanted lowerings that a precision is written in.

    bf16 is for engines: ONNX Runtime's CPU kernels do not compute in it.
    """
    known: tuple[Lowering, ...] = ("portable",) if precision == "bf16" else ("portable", "cpu", "cuda")
    return tuple(lowering for lowering in known if lowering in wanted)
